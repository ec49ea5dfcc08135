"""Progress of this process's uploads: counted, waited for, and summed up at exit.

All of it is read from the uploader's cursors and from the journal, on this machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..disk.settings import Settings
from ..errors import InvalidValue, JournalError
from ..journal.blobs import names
from ..journal.segment import parse_blob
from ..reading.located import Located
from ..reading.read import view
from . import launch, registrations
from .acknowledged import unsent
from .cursor import Cursor

if TYPE_CHECKING:
    from ..journal.writer import Writer

log = logging.getLogger("ml_dash")

_LOOK_EVERY_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1
# Reading the state takes longer the more was recorded: while a large file is waited for, it is read once in this time.
_LIVE_S: Final = 1.0
# An uploader that was started takes this long at most to take its lock.
_START_S: Final = 15.0
_FINISH_START_S: Final = 1.0
# At the end of a process that opened thousands of experiments, their count may not be worth waiting for.
_COUNT_S: Final = 1.0
# A closing event comes after all that a program can wait for; an uploader that is at work needs this long for it.
_CLOSING_S: Final = 0.5
_FEW: Final = 100


class Sent:
    """The upload of what one writer of this process writes, to one server. Any thread may call."""

    def __init__(self, registration: registrations.Registration, located: Located, writer: Writer) -> None:
        self.registration = registration
        self.located = located
        self.id = writer.id
        self._writer: Writer | None = writer
        self._written = 0
        # (events written, when it was looked at, contents of files that are neither replaced nor deleted)
        self._live: tuple[int, float, frozenset[str]] | None = None

    @property
    def written(self) -> int:
        """Events in the journal, without those that still wait in memory for the disk."""
        writer = self._writer
        return writer.durable_counts()["written"] if writer is not None else self._written

    @property
    def waiting(self) -> bool:
        """True if events wait in memory for the disk."""
        writer = self._writer
        return writer is not None and writer.waiting

    def end(self) -> None:
        """Note that the writer has closed: keep its count, and let go of it."""
        self._written, self._writer = self.written, None

    def acknowledged(self) -> int:
        """Return how many events of this writer the server has, by the cursor: perhaps too few, never too many."""
        # Count, cursor and sizes are read in this order: what is appended meanwhile can only make the result too low.
        written = self.written
        cursor = registrations.cursor_of(self.registration)
        return self._acknowledged(cursor, written) if cursor is not None else 0

    def _acknowledged(self, cursor: Cursor, written: int) -> int:
        try:
            seq = unsent(self.located.journal, cursor, self.id)
        except (OSError, JournalError) as error:
            log.debug("ml-dash: cannot count what is sent of %s: %s", self.located.journal, error)
            return 0
        return min(written, seq.get(self.id, written))

    def complete(self) -> bool:
        """True if the server has acknowledged all that this writer wrote, files included."""
        written = self.written
        cursor = registrations.cursor_of(self.registration)
        if cursor is None or self.waiting or self._acknowledged(cursor, written) < written:
            return False
        return self._has_files(cursor, written)

    def _has_files(self, cursor: Cursor, written: int) -> bool:
        missing = {name for name in names(self.located.journal) if self._is_ours(name)} - cursor.blobs
        if not missing:
            return True
        # A version that was replaced or deleted need not be sent, and bodies of events went before their frames.
        return missing.isdisjoint(self._live_blobs(written))

    def only_closes(self) -> bool:
        """True if only the closing event is not acknowledged, and nothing prevents that."""
        written = self.written
        cursor = registrations.cursor_of(self.registration)
        if self._writer is not None or cursor is None or cursor.trouble is not None or self.hopeless() is not None:
            return False
        return written - self._acknowledged(cursor, written) == 1 and self._has_files(cursor, written)

    def _live_blobs(self, written: int) -> frozenset[str]:
        """Return the contents of current files, at most a second old."""
        now = time.monotonic()
        if self._live is None or self._live[0] != written or now - self._live[1] > _LIVE_S:
            files = view(self.located).state.files.values()
            self._live = written, now, frozenset(file.blob for file in files if file.live)
        return self._live[2]

    def _is_ours(self, blob: str) -> bool:
        parts = parse_blob(blob)
        return parts is not None and parts[1] == self.id

    def hopeless(self) -> str | None:
        """Return why it cannot be acknowledged as things are; None if it can."""
        remote = self.registration.remote
        if (reason := self.registration.obstacle()) is not None:
            return reason
        cursor = registrations.cursor_of(self.registration)
        if cursor is None:
            return None
        if cursor.trouble is not None and cursor.trouble.kind == "login":
            why = cursor.trouble.text or "the login is not accepted"
            return why if f"ml-dash login {remote}" in why else f"{why}; run: ml-dash login {remote}"
        for name, reason in cursor.parked.items():
            if f"-{self.id}-" in name:
                return f"{remote} does not take {name}: {reason}; see: ml-dash sync status"
        return None


# -- this process ----------------------------------------------------------------------------------------------------


@dataclass
class _Process:
    """The uploads of this process, and the servers whose missing login it reported. `_guard` protects `sent`.

    `failed`: a failed registration was logged. `looked`: when an uploader was last looked for (monotonic, seconds).
    """

    pid: int
    sent: deque[Sent]
    reported: set[str]
    failed: bool = False
    looked: float = 0.0


_guard = threading.Lock()
_process = _Process(os.getpid(), deque(), set())


def _here() -> _Process:
    """Return the record of this process: in a forked child a new one, without the uploads of its parent."""
    global _process, _guard
    if _process.pid != os.getpid():
        _guard = threading.Lock()
        _process = _Process(os.getpid(), deque(), set(_process.reported))
    return _process


def begin(
    located: Located, writer: Writer, settings: Settings, known: list[Sent], *, forked: bool, local: bool, new: bool
) -> Sent | None:
    """Register a journal for upload, start the uploader, and return the upload, added to `known`, those of this run.

    A journal that is not `new` keeps the identity it has. Reads a few files and may write one; uses no network and
    does not wait. Returns None if it cannot be registered, with one warning per process.
    """
    here = _here()
    if forked:
        launch.never_start()
    try:
        ask = registrations.register if new else registrations.register_again
        registration = ask(located.journal, settings)
    except OSError as error:
        if not here.failed:
            here.failed = True
            log.warning(
                "ml-dash: the upload to %s could not be asked for: %s. Data is kept here; run: ml-dash push",
                settings.remote, error,
            )  # fmt: skip
        return None
    begun = next((upload for upload in known if upload.registration.key == registration.key), None)
    if begun is not None:
        return begun
    sent = Sent(registration, located, writer)
    known.append(sent)
    with _guard:
        here.sent.append(sent)
    here.looked = time.monotonic()
    if registration.has_login():
        launch.start_daemon(alone=local)
    return sent


def needs_login(sent: Sent) -> bool:
    """True, once per server, if there is no login for it."""
    registration, reported = sent.registration, _here().reported
    if registration.remote in reported or registration.has_login():
        return False
    reported.add(registration.remote)
    return True


def end(ended: list[Sent]) -> None:
    """Note that the writers of these uploads have closed."""
    for upload in ended:
        upload.end()
    here = _here()
    # A sweep opens thousands of runs: complete uploads are dropped, the oldest first, two for each that ends.
    for _ in range(2 * len(ended)):
        with _guard:
            oldest = here.sent.popleft() if here.sent else None
        if oldest is None:
            return
        if oldest._writer is not None or not _is_complete(oldest):
            with _guard:
                here.sent.append(oldest)


def _is_complete(upload: Sent) -> bool:
    try:
        return upload.complete()
    except (OSError, JournalError):
        return False


def ensure_uploader(sent: list[Sent], *, local: bool) -> None:
    """Start an uploader, at most once a minute, if none runs and there is a login."""
    here = _here()
    now = time.monotonic()
    if now - here.looked < _LOOK_EVERY_S:
        return
    here.looked = now
    if not launch.daemon_runs() and sent[0].registration.has_login():
        launch.start_daemon(alone=local)


def of_journal(journal: Path, remote: str) -> list[Sent]:
    """Return this process's uploads of a journal to a server, without those known to be complete."""
    here = _here()
    with _guard:
        uploads = list(here.sent)
    uploads = [upload for upload in uploads if upload.located.journal == journal]
    return [upload for upload in uploads if upload.registration.remote == remote]


# -- waiting ---------------------------------------------------------------------------------------------------------


def wait(sent: list[Sent], timeout: float | None) -> tuple[bool, str]:
    """Wait until all is acknowledged: return (True, ""), or (False, why not) after `timeout` seconds (None: no limit).

    Returns early where it cannot happen: no login, no uploader that could be started, refused for good.
    """
    begun = time.monotonic()
    pause = _FIRST_PAUSE_S
    seen_daemon = begun
    while True:
        sent = [upload for upload in sent if not _is_complete(upload)]
        if not sent:
            return True, ""
        for upload in sent:
            if (reason := upload.hopeless()) is not None:
                return False, reason
        now = time.monotonic()
        if launch.daemon_runs():
            seen_daemon = now
        elif not launch.start_daemon():
            return False, _nobody()
        elif now - seen_daemon > _START_S:
            return False, f"ml-dash-syncd does not start; see {launch.log_path()}"
        left = None if timeout is None else timeout - (now - begun)
        if left is not None and left <= 0:
            return False, _still_waiting(sent, timeout)
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)


def _nobody() -> str:
    if not launch.autosync():
        return f"no ml-dash-syncd runs, and {launch.AUTOSYNC} is off; start it with: ml-dash-syncd run"
    return "no ml-dash-syncd runs, and this process is not the one to start it; start it with: ml-dash-syncd run"


def _still_waiting(sent: list[Sent], timeout: float | None) -> str:
    events = sum(upload.written - upload.acknowledged() for upload in sent)
    what = f"{events:,} events" if events else "files"
    cursors = (registrations.cursor_of(upload.registration) for upload in sent)
    trouble = next((cursor.trouble for cursor in cursors if cursor is not None and cursor.trouble), None)
    return f"{what} are not acknowledged after {timeout:g} s" + (f": {trouble.text}" if trouble else "")


def report_at_exit(*, quiet: bool) -> str | None:
    """Wait, at exit, as `ML_DASH_EXIT_WAIT` asks; return the line to print if something is not sent."""
    here = _here()
    launch.finish_start(_FINISH_START_S)
    with _guard:
        left = list(here.sent)
    if not left:
        return None
    with contextlib.suppress(InvalidValue, KeyboardInterrupt):
        if (seconds := launch.exit_wait_s()) > 0:
            wait(left, seconds)
    if quiet:
        return None
    try:
        if launch.daemon_runs() and not launch.in_exec() and _only_closing(left):
            with contextlib.suppress(KeyboardInterrupt):
                wait(left, _CLOSING_S)
            if _only_closing(left):
                return None
    except (OSError, JournalError) as error:
        log.debug("ml-dash: cannot determine what is sent: %s", error)
    return _line(left)


def _only_closing(left: list[Sent]) -> bool:
    """True if only closing events are not acknowledged. False for more than 100 uploads, which are not read."""
    return len(left) <= _FEW and all(_is_complete(upload) or upload.only_closes() for upload in left)


def _line(left: list[Sent]) -> str | None:
    deadline = time.monotonic() + _COUNT_S
    events = files = looked = 0
    remotes: dict[str, Sent] = {}
    for upload in left:
        if looked and time.monotonic() > deadline:
            break
        looked += 1
        try:
            unsent = upload.written - upload.acknowledged()
            if not unsent and upload.complete():
                continue
        except (OSError, JournalError):
            continue
        events += unsent
        files += not unsent
        remotes.setdefault(upload.registration.remote, upload)
    if not remotes:
        return None
    count = f"{events:,} event{'' if events == 1 else 's'}" if events else "files"
    what = ("at least " if looked < len(left) else "") + count
    where = ", ".join(remotes)
    be = "is" if events == 1 else "are"
    reason = next((reason for upload in remotes.values() if (reason := upload.hopeless()) is not None), None)
    if reason is not None:
        return f"ml-dash: {what} {be} not on {where} yet, and kept here: {reason}"
    if launch.in_exec():
        return None  # it sends what is left when the job has ended, and says what it could not send
    if launch.daemon_runs() or launch.daemon_comes_up():
        so = "ml-dash-syncd goes on sending; where it ends with the job, run that as: ml-dash-syncd exec -- CMD"
    else:
        so = "nobody is sending; run: ml-dash-syncd once, or the job as: ml-dash-syncd exec -- CMD"
    return f"ml-dash: {what} {be} not on {where} yet, and kept here; {so}"
