"""A recorder of machine-learning experiments that can prove that it has your data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.version import __version__
from .decorator import ml_dash_experiment
from .disk.config import OperationMode
from .errors import (
    AlreadyExists,
    ChecksumMismatch,
    Damaged,
    ForeignFolder,
    InvalidInput,
    InvalidName,
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
from .parameters import ParametersBuilder

if TYPE_CHECKING:
    from os import PathLike
    from typing import Any

    from .client import RemoteClient
    from .core.records import ExperimentRecord

__all__ = [
    "AlreadyExists",
    "ChecksumMismatch",
    "Damaged",
    "Experiment",
    "FileBuilder",
    "FileEntry",
    "ForeignFolder",
    "InvalidInput",
    "InvalidName",
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
]


def __getattr__(name: str) -> Any:
    # Those that only record need not load it.
    if name == "RemoteClient":
        from .client import RemoteClient

        return RemoteClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def experiments(path: str | PathLike[str] | None = None, project: str | None = None) -> list[ExperimentRecord]:
    """The experiments that exist, by project and name: what `experiment.json` of each holds, up to date.

    `path` is a root, store, project or experiment folder; without one, where the environment says, else `.ml-dash`.
    """
    from pathlib import Path

    from .reading import read

    found = read.find(Path(path) if path is not None else None, project)
    return [read.record(located) for located in found]
