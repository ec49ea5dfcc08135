"""The stores that the settings of a server name, opened."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ...disk.durable import sync_folder
from ..settings import ServerSettings
from . import Documents, StoreRefused, Stores
from .disk import DiskObjects
from .disk_uploads import DiskUploads
from .sqlite import SqliteDocuments

DATABASE: Final = "server.sqlite"
_MONGO_DATABASE: Final = "ml_dash"


def open_stores(settings: ServerSettings, *, alone: bool = False) -> Stores:
    """Open the stores of a server: MongoDB or SQLite, S3 or a folder. What is in the data folder is made if need be.

    `alone`: the caller has locked the data folder, so no other process folds what is in it. Raises StoreRefused if they
    cannot be used as they are, StoreTrouble if they cannot be reached.
    """
    documents = _documents(settings, alone=alone)
    shared = settings.mongodb_uri is not None
    try:
        if settings.s3 is not None:
            _require("boto3", "S3_BUCKET", "s3")
            from .s3 import S3Objects
            from .s3_uploads import S3Uploads

            bucket = S3Objects(settings.s3)
            return Stores(documents, bucket, S3Uploads(bucket), shared)
        objects = DiskObjects(settings.data / "objects")
        return Stores(documents, objects, DiskUploads(settings.data / "staging", objects), shared)
    except BaseException:
        documents.close()
        raise


def _documents(settings: ServerSettings, *, alone: bool) -> Documents:
    if settings.mongodb_uri is None:
        return SqliteDocuments(settings.data / DATABASE, alone=alone)
    _require("pymongo", "MONGODB_URI", "mongo")
    from .mongo import MongoDocuments

    return MongoDocuments(settings.mongodb_uri, urlsplit(settings.mongodb_uri).path.strip("/") or _MONGO_DATABASE)


def _require(module: str, variable: str, extra: str) -> None:
    """Raise StoreRefused if a package that a setting needs is not installed."""
    if find_spec(module) is None:
        raise StoreRefused(
            f"{variable} is set, and {module} is not installed", hint=f"run: pip install 'ml-dash[server,{extra}]'"
        )


def make_data(data: Path) -> None:
    """Make the data folder if it is not there. Raises StoreRefused where that cannot be, or it may not be written."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        hint = "name another with --data, in a place where this user may write"
        raise StoreRefused(f"the data folder {data} cannot be made: {error.strerror or error}", hint=hint) from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise StoreRefused(
            f"the data folder {data} may not be written by this user",
            hint="run this as the server's user, or name another with --data",
        )
    sync_folder(data.parent)
