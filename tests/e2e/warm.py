"""Imports, before any victim is forked, all that victims need."""

import importlib
import pkgutil

import ml_dash
import ml_dash_syncd
from tests.crash import warm as writers

from . import victims

__all__ = ["victims", "writers"]

for package in (ml_dash, ml_dash_syncd):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__") and not module.name.startswith("ml_dash.demo"):
            importlib.import_module(module.name)
# uvicorn imports these by name when it starts
for name in (
    "uvicorn.loops.asyncio", "uvicorn.protocols.http.h11_impl", "uvicorn.lifespan.on", "ml_dash_syncd.__main__",
):  # fmt: skip
    importlib.import_module(name)

importlib.import_module("ml_dash.core.rewinds").SPAN = victims.FEW
