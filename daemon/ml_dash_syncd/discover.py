"""Discovery of the journals to send: those that processes registered, and those in watched stores.

    registered folder   one file for each journal that a process opened with `remote=`; says remote, user and login
    stores              folders named in the settings: every journal in them goes to the remote named there

A search is cheap when nothing is new: one `stat` for the registered folder, and for each store one for it and for
each of its projects. Only what has changed is read. The result is the same object as before if nothing changed, so
that the caller sees that without comparing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ml_dash.disk.places import config_folder
from ml_dash.errors import MLDashError
from ml_dash.reading import read
from ml_dash.sync import registrations
from ml_dash.sync.registrations import Registration

from .settings import Settings

log = logging.getLogger("ml_dash.syncd")

FRESH_NS: Final = 5_000_000_000
"""A folder is read again after a change so recent: what is new may not be complete, and another change may not show."""

REREAD_S: Final = 600.0
"""Everything is read again this often, even if no folder seems to have changed."""


class Discovery:
    """Finds registrations; reads a folder again only if its modification time has changed. For one thread."""

    def __init__(self, settings: Settings, only: Iterable[str] = ()) -> None:
        """With `only`, keys of registrations: find those and no others, and search no stores."""
        self.settings = settings
        self._only = frozenset(only)
        # Folder → its modification time in ns when it was read; -1 if it could not be looked at, -2 if it was
        # changing then.
        self._seen: dict[str, int] = {}
        self._registered: list[Registration] = []
        self._in_stores: dict[Path, list[Registration]] = {}
        self._found: dict[str, Registration] = {}
        # When everything was last read (time.monotonic), and the last warning, so that each comes once.
        self._read_all = time.monotonic()
        self._warned = ""

    def forget(self) -> None:
        """Read every folder again at the next `find`."""
        self._seen = {}

    def folders(self) -> list[Path]:
        """Folders in which new experiments may appear: the stores and their projects."""
        return [folder for store in self.settings.stores for folder in (store, *_folders(store))]

    def find(self) -> dict[str, Registration]:
        """All registrations, by key; the same mapping as before if nothing has changed."""
        now = time.monotonic()
        if now - self._read_all > REREAD_S:
            self._read_all = now
            self.forget()
        folder = registrations.registered_folder()
        changed = self._has_changed([folder])
        if changed:
            try:
                known = registrations.read_all()
            except OSError as error:
                # Go on with the registrations that are known, and read the folder again the next time.
                self._seen.pop(str(folder), None)
                if self._warned != str(error):
                    self._warned = str(error)
                    log.warning("%s cannot be read: %s", folder, error)
            else:
                self._registered = [one for one in known if not self._only or one.key in self._only]
        for store in () if self._only else self.settings.stores:
            folders = [store, *_folders(store)] if store.is_dir() else [store]
            if self.settings.user is None:
                # Journals are bound to the user who logs in first, so a change of the logins may matter.
                folders.append(config_folder())
            if self._has_changed(folders) or store not in self._in_stores:
                self._in_stores[store] = self._find_in_store(store)
                changed = True
        if changed:
            # Of two with one key, the one that a process registered wins: it says as which user.
            mine = [*(one for found in self._in_stores.values() for one in found), *self._registered]
            found = {one.key: one for one in mine}
            if found != self._found:
                self._found = found
        return self._found

    def _find_in_store(self, store: Path) -> list[Registration]:
        """Registrations for all journals of a store; empty, and logged, if it cannot be read."""
        assert self.settings.remote is not None
        try:
            located = read.find(store)
        except (OSError, MLDashError) as error:
            log.warning("%s cannot be read: %s", store, error)
            return []
        if self.settings.user is not None:
            return [Registration(str(one.journal), self.settings.remote, self.settings.user) for one in located]
        return self._bound([one.journal for one in located], self.settings.remote)

    def _bound(self, journals: list[Path], remote: str) -> list[Registration]:
        """Registrations for journals of a store, each bound to the user who was logged in when it was first seen.

        They are written to disk, so that the journals do not go to the account of somebody who logs in later.
        """
        claimed = {one.journal for one in self._registered if one.remote == remote and one.is_claimed}
        found = [registrations.bind(journal, remote, None) for journal in journals if str(journal) not in claimed]
        for one in found:
            if one.is_claimed:
                try:
                    registrations.write(one)
                except OSError as error:
                    log.warning("%s cannot be registered: %s", one.journal, error)
        return found

    def _has_changed(self, folders: Iterable[Path]) -> bool:
        """True if a folder has changed since it was last asked about here, or had changed shortly before that."""
        changed = False
        now = time.time_ns()
        for folder in folders:
            try:
                stamp = folder.stat().st_mtime_ns
            except OSError:
                stamp = -1
            if self._seen.get(str(folder)) != stamp:
                # -2 differs from every stamp, so a folder that changed a moment ago is read again.
                self._seen[str(folder)] = -2 if abs(now - stamp) < FRESH_NS else stamp
                changed = True
        return changed


def _folders(store: Path) -> list[Path]:
    """The project folders of a store; empty if it cannot be read."""
    try:
        with os.scandir(store) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
