"""The checkpoint of a projection: how far it has folded, and the state needed to continue. May always be deleted.

    magic 8 | crc32 u32 of the rest | msgpack of `Checkpoint`

A checkpoint that is damaged, of another version or of another journal is not used: folding starts at the beginning.
`trust` says whether what it counts is still there.

It holds the position in the journal (`Position`), the folded state, and the layout of the folder (which bytes and
lines were written where), all of the same moment. So whoever loads it goes on as if it had folded everything itself,
in time proportional to the state and not to the journal.

It is replaced by rename, so a process that is killed leaves the old one or the new one, and never a part. It is not
synced: after a power cut the file may be old, empty or full of zeros; the checksum finds the last two, and an old one
only costs folding again.

Any process with the turn may replace it. A projector that keeps its state in memory compares `signature` before each
pass, and loads anew if another process has been at work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from ..core.state import FOLD_VERSION, State
from ..disk.durable import boot_id, fail_point, replace_file
from ..journal import base as bases
from ..journal.merge import Position
from ..journal.segment import CHECKPOINT

LAYOUT_VERSION: Final = 2
"""Grows when a folder is laid out otherwise: checkpoints of older versions are not used."""
LINES_PER_MARK: Final = 1000
"""Every line whose number is a multiple of this has its offset in `LineFile.marks`."""
_MAGIC: Final = b"\x89MLDCHK\n"


@dataclass(slots=True)
class LineFile:
    """A file of lines: its size in bytes, and the offsets (`marks`) of its first line and of every 1,000th one.

    `lines` is the number of the next line, `first` that of the first line in the file: not 0 if a base stands for lines
    before it. The first `safe` bytes were read from disk after a boot of the machine; `crc` is the CRC-32 of the
    others.

        marks[0]=0      marks[1]           marks[2]      size
           |  line 0..999  |  line 1000..1999  |  line 2000.. |     a file without a base: first=0

    A mark lets a reader of lines [a, b) seek to less than 1,000 lines before a. `crc` covers only bytes [safe, size),
    because those below `safe` were already read back from disk after a boot.
    """

    size: int = 0
    lines: int = 0
    marks: list[int] = field(default_factory=list)
    safe: int = 0
    crc: int = 0
    first: int = 0

    def mark_before(self, number: int) -> tuple[int, int]:
        """Return (index into `marks`, number of the line there) of the last mark at or before a line."""
        index = number // LINES_PER_MARK - self.first // LINES_PER_MARK
        return index, max(self.first, number // LINES_PER_MARK * LINES_PER_MARK)


@dataclass(slots=True)
class Layout:
    """What the documented folder holds, as far as this projection wrote it."""

    logs: LineFile = field(default_factory=LineFile)
    metrics: dict[str, LineFile] = field(default_factory=dict)
    # Path under files/ → the blob that is shown there.
    placed: dict[str, str] = field(default_factory=dict)
    # Documents that are older than the state: metadata of these metrics, experiment.json, the metadata of files.
    stale: list[str] = field(default_factory=list)
    stale_experiment: bool = False
    stale_files: bool = False


@dataclass(slots=True)
class Checkpoint(Position):
    """A moment of a projection: what `covered` names is folded into `state`. Field names are keys in the file."""

    fold_version: int = FOLD_VERSION
    layout_version: int = LAYOUT_VERSION
    boot: str = ""
    # How much of `order` was used, with its CRC, to be checked after another boot.
    order: LineFile = field(default_factory=LineFile)
    # Segment file name → the offset up to which its frames were read from disk after a boot of the machine.
    safe: dict[str, int] = field(default_factory=dict)
    state: State = field(default_factory=State)
    layout: Layout = field(default_factory=Layout)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Checkpoint)


def save(journal: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint. Not synced: after a power cut an older one, or none, serves as well. Raises OSError."""
    fail_point("checkpoint-before")
    # Until the machine is started again, the page cache shows every process what was written, so nothing need be
    # checked. With another boot id, or on another machine, `trust` reads again.
    checkpoint.boot = boot_id()
    body = _encoder.encode(checkpoint)
    replace_file(journal / CHECKPOINT, _MAGIC + crc32(body).to_bytes(4, "little") + body)
    fail_point("checkpoint-after")


def load(journal: Path) -> Checkpoint | None:
    """Return the checkpoint of a journal; None if there is none that can be used.

    Raises JournalError if there is a base that cannot be used: what it stands for is nowhere else on this machine.
    """
    base = bases.identity_of(journal)
    path = journal / CHECKPOINT
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    body = content[12:]
    if content[:8] != _MAGIC or content[8:12] != crc32(body).to_bytes(4, "little"):
        return None
    try:
        checkpoint = _decoder.decode(body)
    # A right checksum does not prove a sound content: a journal may come from elsewhere, with a checkpoint that
    # somebody made.
    except (ValueError, RecursionError):
        return None
    if checkpoint.fold_version != FOLD_VERSION or checkpoint.layout_version != LAYOUT_VERSION:
        return None
    return checkpoint if checkpoint.base == base else None


def signature(journal: Path) -> tuple[int, int, int] | None:
    """Return what changes with every save of the checkpoint, by whichever process; None if there is none.

    A file that was renamed over another has another inode. Where inode numbers are used again at once, time and size
    tell them apart.
    """
    try:
        status = (journal / CHECKPOINT).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
