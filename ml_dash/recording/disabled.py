"""Recording switched off (`ML_DASH_DISABLED`): a temporary folder of this process, removed at exit."""

from __future__ import annotations

import os
from pathlib import Path

from ..disk.settings import Settings

_folder: tuple[Path, int] | None = None


def settings_of_nothing(settings: Settings) -> Settings:
    """Return settings for recording that is switched off: a temporary folder, and no syncing."""
    global _folder
    if _folder is None:
        import tempfile

        _folder = Path(tempfile.mkdtemp(prefix="ml-dash-disabled-")), os.getpid()
    root = _folder[0]
    return settings._replace(root=root, store=root, local_path=os.fspath(root), durability="os")


def remove() -> None:
    """Remove the temporary folder, at exit, after all is closed. A forked child leaves it to its parent."""
    if _folder is not None and _folder[1] == os.getpid():
        import shutil

        shutil.rmtree(_folder[0], ignore_errors=True)
