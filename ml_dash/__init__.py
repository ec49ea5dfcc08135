"""A recorder of machine-learning experiments that can prove that it has your data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .core.version import __version__
from .recording import process as _process

if TYPE_CHECKING:
    from os import PathLike

    from .client import RemoteClient
    from .core.records import ExperimentRecord
    from .decorator import ml_dash_experiment
    from .disk.settings import OperationMode
    from .errors import (
        AlreadyExists,
        ChecksumMismatch,
        Damaged,
        ForeignFolder,
        InvalidInput,
        InvalidName,
        InvalidQuery,
        InvalidValue,
        JournalError,
        MLDashError,
        NewerFormat,
        NotFound,
        NotOpen,
        ReadOnly,
        ReleasedData,
        RemoteError,
        ServerRefused,
        StillOpen,
        StorageError,
        Unauthorised,
        Unreachable,
        UnsupportedType,
        WriteProtected,
    )
    from .experiment import Experiment
    from .files import FileBuilder, FileEntry
    from .log import LogBuilder, LogHandler, LogLevel
    from .metric import MetricBuilder, MetricsBuilder
    from .notebook import Dashboard, ui
    from .parameters import ParametersBuilder

__all__ = [
    "AlreadyExists",
    "ChecksumMismatch",
    "Damaged",
    "Dashboard",
    "Experiment",
    "FileBuilder",
    "FileEntry",
    "ForeignFolder",
    "InvalidInput",
    "InvalidName",
    "InvalidQuery",
    "InvalidValue",
    "JournalError",
    "LogBuilder",
    "LogHandler",
    "LogLevel",
    "MLDashError",
    "MetricBuilder",
    "MetricsBuilder",
    "NewerFormat",
    "NotFound",
    "NotOpen",
    "OperationMode",
    "ParametersBuilder",
    "ReadOnly",
    "ReleasedData",
    "RemoteClient",
    "RemoteError",
    "ServerRefused",
    "StillOpen",
    "StorageError",
    "Unauthorised",
    "Unreachable",
    "UnsupportedType",
    "WriteProtected",
    "__version__",
    "experiments",
    "ml_dash_experiment",
    "ui",
]


# What users know is loaded when it is first asked for: these modules, and where the names in `__all__` are. Those that
# are not here are errors.
_MODULES: Final = ("client", "decorator", "errors", "experiment", "files", "log", "metric", "notebook", "parameters")
_HOMES: Final = {
    "Dashboard": "notebook",
    "Experiment": "experiment",
    "FileBuilder": "files",
    "FileEntry": "files",
    "LogBuilder": "log",
    "LogHandler": "log",
    "LogLevel": "log",
    "MetricBuilder": "metric",
    "MetricsBuilder": "metric",
    "OperationMode": "disk.settings",
    "ParametersBuilder": "parameters",
    "RemoteClient": "client",
    "ml_dash_experiment": "decorator",
    "ui": "notebook",
}


if not TYPE_CHECKING:  # who checks types sees the imports above, and that a name is not there

    def __getattr__(name: str) -> object:
        if name not in _MODULES and name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = name if name in _MODULES else _HOMES.get(name, "errors")
        with _process.loading():
            module = import_module(f".{home}", __name__)
        value = module if name in _MODULES else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def experiments(
    path: str | PathLike[str] | None = None,
    project: str | None = None,
    *,
    where: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> list[ExperimentRecord]:
    """The experiments that exist, by project and name: what `experiment.json` of each holds, up to date.

    `path` is a root, store, project or experiment folder; without one, where the environment says, else `.ml-dash`.
    With `where`, those that a query means, archived ones only if it names `archived`; with `sort`, by a field, as
    `metrics.loss.min` or `params.lr:desc`; with `limit`, so many. Raises InvalidQuery.
    """
    from pathlib import Path

    from .reading import read

    place = Path(path) if path is not None else None
    found = read.find(place, project)
    if where is not None or sort is not None:
        from .reading.chosen import choose_below
        from .reading.where import parse, parse_sort

        asked = None if where is None else parse(where)
        order = None if sort is None else parse_sort(sort)
        chosen = [one.located for one in choose_below(place, project, asked, order, archived=where is None)]
        found = chosen if sort is not None else [located for located in found if located in set(chosen)]
    return [read.record(located) for located in found[:limit]]
