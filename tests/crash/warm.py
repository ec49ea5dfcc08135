"""Imports, before any victim is forked, all that victims need: a victim without rights cannot read modules any more."""

import ctypes
import hashlib
import importlib
import json
import mimetypes
import pkgutil
import platform
import shutil
import socket
import traceback

import filelock
import msgpack
import msgspec

import ml_dash

from . import victims, victims_disk, victims_processes, victims_special

for module in pkgutil.walk_packages(ml_dash.__path__, "ml_dash."):
    if not module.name.startswith(("ml_dash.cli", "ml_dash.demo", "ml_dash.__main__")):
        importlib.import_module(module.name)

__all__ = [
    "ctypes",
    "filelock",
    "hashlib",
    "json",
    "mimetypes",
    "msgpack",
    "msgspec",
    "platform",
    "shutil",
    "socket",
    "traceback",
    "victims",
    "victims_disk",
    "victims_processes",
    "victims_special",
]
