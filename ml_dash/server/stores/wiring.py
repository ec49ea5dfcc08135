"""The stores that the settings of a server name, opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ...disk.durable import sync_folder
from . import StoreRefused, Stores
from .disk import DiskObjects
from .disk_uploads import DiskUploads
from .sqlite import SqliteDocuments

DATABASE: Final = "server.sqlite"


def open_stores(data: Path, *, alone: bool = False) -> Stores:
    """Open the stores of a data folder, which is here. Raises StoreRefused if they are damaged or newer.

    `alone`: the caller has locked the folder, so no other process folds what is in it.
    """
    documents = SqliteDocuments(data / DATABASE, alone=alone)
    try:
        objects = DiskObjects(data / "objects")
        return Stores(documents, objects, DiskUploads(data / "staging", objects))
    except BaseException:
        documents.close()
        raise


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
