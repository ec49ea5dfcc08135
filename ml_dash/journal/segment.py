"""Names and places of a journal's files, and the creation of a journal.

The layout of a journal's folder is in docs/format.md. Three rules make it safe without locks:

- Whatever must appear whole is made under a temporary name and renamed: a journal, `order`, a blob.
- A segment is created exclusively, and by its writer alone: its name holds the writer's random id.
- Names are for finding and sorting. Who a segment belongs to, and in which journal, its header says.

Segments sort by the creation of their writer, then by writer, then by number: the order in which they are merged where
`order` says nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from ..core.frames import BASE_MAGIC, OrderHeader, decode_order_header, encode_header, header_size
from ..disk.durable import replace_file, sync_folder
from ..errors import Damaged, ForeignFolder, JournalError

JOURNAL: Final = ".journal"
SEGMENTS: Final = "segments"
BLOBS: Final = "blobs"
ORDER: Final = "order"
CHECKPOINT: Final = "checkpoint"
BASE: Final = "base"
TURN: Final = "turn.lock"
EXPERIMENT: Final = "experiment.json"
"""In the documented folder: the file that points back to the journal."""
TITLES: Final = ".titles"
"""Beside the documented folders of a project: which of its experiments were renamed."""

# Bytes after which a writer begins a new segment: what `gc` can free at once, and what a damaged header can cost at
# most.
ROLL_BYTES: Final = 64 << 20

_NAME: Final = re.compile(r"(\d{20})-([0-9a-f]{32})-(\d{6})\.seg")
_BLOB: Final = re.compile(r"([0-9a-f]{64})-([0-9a-f]{32})-(\d+)")


class SegmentName(NamedTuple):
    """A segment's file name; names sort by creation, then writer, then number."""

    created_ns: int
    writer: str
    n: int

    def __str__(self) -> str:
        return f"{self.created_ns:020d}-{self.writer}-{self.n:06d}.seg"

    @property
    def lock(self) -> str:
        """The name of the lock file of the writer whose first segment this is."""
        return lock_name(self.created_ns, self.writer)


def lock_name(created_ns: int, writer: str) -> str:
    """Return the name of the lock file that a writer holds as long as it lives."""
    return f"{created_ns:020d}-{writer}.lock"


def parse_name(text: str) -> SegmentName | None:
    """Parse a segment's file name; None for any other file."""
    match = _NAME.fullmatch(text)
    return SegmentName(int(match[1]), match[2], int(match[3])) if match else None


def parse_blob(text: str) -> tuple[str, str, int] | None:
    """Parse a blob's file name into (digest, writer, seq); None for any other file."""
    match = _BLOB.fullmatch(text)
    return (match[1], match[2], int(match[3])) if match else None


def list_segments(journal: Path) -> list[tuple[SegmentName, Path]]:
    """Return the segments of a journal, oldest first."""
    folder = journal / SEGMENTS
    try:
        with os.scandir(folder) as entries:
            # Links are not followed: they could lead to what is not ours.
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    parsed = [(name, folder / text) for text in names if (name := parse_name(text)) is not None]
    return sorted(parsed, key=lambda pair: pair[0])


def has_segments(journal: Path) -> bool:
    """True if a journal has a segment: quicker than listing thousands of them."""
    try:
        with os.scandir(journal / SEGMENTS) as entries:
            return any(entry.is_file(follow_symlinks=False) and parse_name(entry.name) for entry in entries)
    except FileNotFoundError:
        return False


def create_journal(home: Path, project: str, name: str, *, sync: bool) -> OrderHeader:
    """Make `<home>/.journal`, or find the one that another process made at the same time; return its identity.

    The folder appears complete, by one rename. With `sync` it survives a power cut on return. Raises OSError.
    """
    journal = home / JOURNAL
    home.mkdir(parents=True, exist_ok=True)
    header = OrderHeader(os.urandom(16), project, name)
    temporary = home / f"{JOURNAL}.{os.urandom(6).hex()}.tmp"
    # All of it is made aside. A crash before the rename leaves a folder that nobody takes for a journal.
    (temporary / SEGMENTS).mkdir(parents=True)
    (temporary / BLOBS).mkdir()
    replace_file(temporary / ORDER, encode_header(header), sync=sync)
    try:
        place_journal(temporary, journal)
    except OSError as error:
        import shutil  # 2 ms that only this needs

        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, FileExistsError):
            raise
        return read_identity(journal)
    if sync:
        # What is in the journal, then its name, and those of the folders of the experiment and of the project, which
        # may be new.
        for folder in (journal, home, home.parent, home.parent.parent):
            sync_folder(folder)
    return header


def place_journal(temporary: Path, journal: Path) -> None:
    """Give a journal that is complete its name. Raises FileExistsError if another process has made one there."""
    try:
        # Refused if a folder with something in it is there; so of two processes one wins, and the other takes its
        # journal.
        os.rename(temporary, journal)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.EISDIR) and journal.is_dir():
            raise FileExistsError(error.errno, "another process has made this journal", str(journal)) from None
        raise


def make_store(store: Path) -> None:
    """Make the folder that holds journals; it is not for version control."""
    if not store.exists():
        store.mkdir(parents=True, exist_ok=True)
        replace_file(store / ".gitignore", b"*\n")


def refuse_foreign(folder: Path, hint: str) -> None:
    """Raise ForeignFolder, with that hint, if a folder in which a journal is to be made holds something else."""
    try:
        found = [entry for entry in os.listdir(folder) if not entry.startswith(f"{JOURNAL}.")]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if not os.path.lexists(folder):
            # A folder above is not a folder: nothing can ever be made here, under any name.
            raise
        raise ForeignFolder(f"{folder} is not a folder", hint=hint) from None
    except PermissionError:
        return
    if found:
        raise ForeignFolder(
            f"{folder} is not empty and holds no journal of ml-dash (it holds {sorted(found)[0]!r}); it was left alone",
            hint=hint,
        )


def read_identity(journal: Path) -> OrderHeader:
    """Return which experiment a journal belongs to, from its `order`; if that is lost, from the base or a segment.

    Raises JournalError if none of them says.
    """
    from ..core.frames import decode_header

    try:
        if (journal / ORDER).exists() and not (journal / ORDER).is_file():
            raise Damaged(f"{journal / ORDER} is not a regular file")
        with (journal / ORDER).open("rb") as file:
            start = file.read(4096)
            start += file.read(max(0, header_size(start) - len(start)))
        return decode_order_header(start)[0]
    except (OSError, Damaged) as error:
        # `pull` may have brought segments of another journal of this experiment. A base always belongs to this
        # journal, so it is asked first.
        # A damaged base is reported by who reads it; here another file may still say the name.
        with contextlib.suppress(OSError, Damaged), (journal / BASE).open("rb") as file:
            return decode_order_header(file.read(1 << 16), BASE_MAGIC)[0]
        for _, path in list_segments(journal):
            try:
                with path.open("rb") as file:
                    header = decode_header(file.read(1 << 16))[0]
            except (OSError, Damaged):
                continue
            return OrderHeader(header.journal, header.project, header.name)
        raise JournalError(
            f"{journal} does not say which experiment it holds ({error})",
            hint="if nothing in it is needed, remove that folder",
        ) from error


class SegmentFolder:
    """The open `segments/` folder of a journal.

    New segments are created relative to its descriptor. So they go to the right place if the experiment's folder is
    renamed, and no symbolic link can lead them elsewhere.
    """

    # A program may close and reopen low descriptor numbers (0 to 2 above all) without looking whose they are.
    _LOWEST_FD: Final = 64

    def __init__(self, journal: Path, identity: OrderHeader) -> None:
        self.journal = journal
        self.identity = identity
        self._fd = -1
        self._above_is_synced = False

    def open(self) -> None:
        """Open the folder. Raises OSError if it does not exist, or is a symbolic link."""
        # Windows: paths are used instead.
        if os.open not in os.supports_dir_fd:
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        above = os.open(self.journal, flags)
        try:
            self._fd = self._raise_fd(os.open(SEGMENTS, flags, dir_fd=above))
        finally:
            os.close(above)

    def ensure(self) -> bool:
        """Open the folder if it is not open; make it again, with the same identity, if it was removed.

        True if it was opened.
        """
        # Zero links: the folder was removed, and whatever is created in it through this descriptor would be lost.
        if self._fd >= 0 and os.fstat(self._fd).st_nlink > 0:
            return False
        self.close()
        # `mkdir` would follow such a link, and put the journal where it leads.
        for path in (self.journal.parent, self.journal):
            if path.is_symlink():
                raise OSError(errno.ELOOP, f"{path} was replaced by a symbolic link")
        (self.journal / SEGMENTS).mkdir(parents=True, exist_ok=True)
        (self.journal / BLOBS).mkdir(exist_ok=True)
        if not (self.journal / ORDER).exists():
            replace_file(self.journal / ORDER, encode_header(self.identity))
        self._above_is_synced = False
        self.open()
        return True

    def create(self, name: SegmentName) -> int:
        """Create a segment and return its descriptor, open for append. Raises OSError, also if the file exists."""
        # O_EXCL: never another's file. O_APPEND: frames go to the end, wherever the position is.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        for extra in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):
            flags |= getattr(os, extra, 0)
        if self._fd >= 0:
            return self._raise_fd(os.open(str(name), flags, 0o644, dir_fd=self._fd))
        return os.open(self.journal / SEGMENTS / str(name), flags, 0o644)

    def sync(self) -> None:
        """Make the names in the folder durable, and those of the folders above it. Raises OSError."""
        if self._fd >= 0:
            os.fsync(self._fd)
        if self._above_is_synced:
            return
        # Up to the top of the file system: which of these folders are new is not known here, and syncing an old one
        # costs next to nothing.
        device = self.journal.parent.stat().st_dev if self.journal.parent.exists() else None
        for folder in (self.journal, *self.journal.parents):
            # A folder that we may not open, or that has moved, must not make this sync fail.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                if folder.stat().st_dev != device:
                    break
                sync_folder(folder)
        self._above_is_synced = True

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _raise_fd(self, fd: int) -> int:
        """Replace a descriptor by a copy with a number from 64 on; return it, or the old one if that cannot be done."""
        try:
            import fcntl
        except ImportError:
            return fd
        try:
            higher = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._LOWEST_FD)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EMFILE):
                return fd
            raise
        # A late error of close (NFS) is of no interest: nothing was written through this number.
        with contextlib.suppress(OSError):
            os.close(fd)
        return higher
