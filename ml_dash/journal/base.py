"""The base: a checksummed snapshot that stands for segments freed here, or never brought here.

header (as that of `order`, with a magic of its own) | length u64 | crc32 u32 | body (msgpack, `length` bytes)

The checksum covers the length and the body and starts from the header's. A base must not be deleted: what it stands for
is on the server only. So a base that cannot be read is an error wherever the journal is read, and no reader continues
as if there were none.

Two things make one. `gc` removes segments that a server has proven to hold, and `pull` may bring an experiment's state
without its events. `gc` writes the base, synced, before it removes anything; a journal that is brought appears whole,
with its base. A crash of `gc` in between leaves segments that are also in the base: their first `length` bytes count as
folded, so nothing is doubled.

    without    fold(all segments)                       = state
    with       fold(base.state, what is not in it)      = the same state

A base is replaced as a whole, by a rename, so readers see the old one or the new one. A reader notes its identity, and
starts over when it has changed. It is read whole: it holds a state, and a mark for every 1,000 lines that stay, but no
points.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from ..core.frames import BASE_MAGIC, OrderHeader, decode_order_header, encode_header, header_size
from ..core.state import FOLD_VERSION, State
from ..core.upgrade import upgrade
from ..disk.durable import fail_point, replace_file
from ..errors import Damaged, JournalError, NewerFormat
from .segment import BASE, parse_name

# Length and checksum of the body.
_HEAD: Final = struct.Struct("<QI")
ADVICE: Final = "the server has all that it stands for: run ml-dash pull for this experiment, or restore the file"

assert _HEAD.size == 12


@dataclass(frozen=True, slots=True)
class FreedSegment:
    """A segment that a base stands for: its first `length` bytes, with this SHA-256 (hex), are folded into the base.

    `remote` is the server that has proven to hold these bytes; empty if the base came from a server. Ids are in hex;
    `journal` is the one that the segment's header names.
    """

    id: str
    file: str
    writer: str
    journal: str
    length: int
    sha256: str
    remote: str = ""


@dataclass(frozen=True, slots=True)
class KeptLines:
    """A file of lines that stays in the documented folder although it cannot be made again here.

    Its first `size` bytes are the lines before the base, with this CRC-32; `marks` are offsets of every 1,000th line.
    """

    first: int
    lines: int
    size: int
    crc: int
    marks: list[int]


@dataclass(frozen=True, slots=True)
class Base:
    """An experiment up to a point: its folded state, and the segments and blobs that this replaces here."""

    project: str
    name: str
    state: State
    # Segments by their ids. Some may still be here: of those, the first `length` bytes are folded already.
    segments: dict[str, FreedSegment]
    # Contents that the server holds, whole and verified: blob name → size in bytes.
    blobs: dict[str, int] = field(default_factory=dict)
    # Up to where in which `order` file (see `Order.identity`) the state goes.
    order_identity: str = ""
    order_position: int = 0
    # From the store to the documented folder; empty if not known.
    folder_path: str = ""
    # Lines that stay in the documented folder: of the logs under "", of metrics under their names.
    kept: dict[str, KeptLines] = field(default_factory=dict)
    fold_version: int = FOLD_VERSION


# Decodes the same bytes as `Base`, and leaves the state as it is in them.
class _Envelope(msgspec.Struct):
    """The fold's version, read before the state: a state of another version means something else."""

    fold_version: int
    state: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
_envelope: Final = msgspec.msgpack.Decoder(_Envelope)
_decoder: Final = msgspec.msgpack.Decoder(Base)


def encode(base: Base) -> bytes:
    """Encode the body of a base: what a server answers, and what the file holds behind its header."""
    return _encoder.encode(base)


def decode(body: bytes) -> Base:
    """Decode the body of a base. Raises Damaged if it is not one, NewerFormat if a newer fold made it."""
    # The version first: a newer state may not even decode as ours, and that is no damage.
    try:
        version = _envelope.decode(body).fold_version
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not a valid base: {error}", hint=ADVICE) from None
    if version > FOLD_VERSION:
        raise NewerFormat(
            f"the base was folded by version {version}, this ml-dash folds by version {FOLD_VERSION}",
            hint="upgrade ml-dash (the file was not changed)",
        )
    try:
        base = _decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not a valid base: {error}", hint=ADVICE) from None
    # Not folded again, as a checkpoint would be: the events are not here. So older states must be brought up to date.
    if version < FOLD_VERSION:
        upgrade(base.state, version)
        base = replace(base, fold_version=FOLD_VERSION)
    # The body may come from a server, and these names become paths.
    if not all(_holds(identity, freed) for identity, freed in base.segments.items()):
        raise Damaged("it names segments that are not possible", hint=ADVICE)
    return base


def _holds(identity: str, freed: FreedSegment) -> bool:
    """True if a freed segment is listed under its own id, and its file has a segment's name and its writer's."""
    name = parse_name(freed.file)
    return name is not None and name.writer == freed.writer and freed.id == identity and freed.length >= 0


# -- the file ---------------------------------------------------------------------------------------------------------


def save(journal: Path, identity: OrderHeader, base: Base) -> None:
    """Store a base in a journal, replacing an older one; on return it survives a power cut. Raises OSError."""
    fail_point("base-before")
    # The nonce is of `order`; a base of the same content has the same bytes.
    head = encode_header(identity._replace(nonce=b""), BASE_MAGIC)
    body = encode(base)
    replace_file(journal / BASE, head + _HEAD.pack(len(body), _crc(head, body)) + body, sync=True)


def _crc(head: bytes, body: bytes) -> int:
    """Return the checksum of a body and its length, continued from the header's: the last four bytes of `head`."""
    return crc32(body, crc32(len(body).to_bytes(8, "little"), int.from_bytes(head[-4:], "little")))


def exists(journal: Path) -> bool:
    """True if a journal has a base, readable or not."""
    return (journal / BASE).exists()


def load(journal: Path) -> Base | None:
    """Return the base of a journal; None if it has none. Raises Damaged, NewerFormat or JournalError."""
    stored = read(journal)
    return None if stored is None else stored[0]


def read(journal: Path) -> tuple[Base, str] | None:
    """Return the base of a journal and its `identity_of`; None if it has none. Raises as `load` does."""
    body = _checked_body(journal)
    if body is None:
        return None
    try:
        return decode(body), _identity(body)
    except (Damaged, NewerFormat) as error:
        raise type(error)(f"{journal / BASE}: {error.message}", hint=error.hint) from None
    except JournalError as error:
        raise JournalError(f"{journal / BASE}: {error.message}", hint=error.hint) from None


def identity_of(journal: Path) -> str:
    """Return a text that differs for each base of a journal, its checksum checked; empty if there is none.

    Raises Damaged or NewerFormat.
    """
    body = _checked_body(journal)
    return "" if body is None else _identity(body)


def _identity(body: bytes) -> str:
    """Return what `identity_of` returns, from a body: its checksum and its length."""
    return f"{crc32(body):08x}{len(body):x}"


def _checked_body(journal: Path) -> bytes | None:
    """Return the body of a journal's base, checked; None if there is no base. Raises Damaged, NewerFormat, OSError."""
    path = journal / BASE
    try:
        # A link or a folder in its place is damage. *No base* would make readers forget what it stood for.
        if path.is_symlink() or not path.is_file():
            if path.is_symlink() or path.exists():
                raise Damaged(f"{path} is not a regular file", hint=ADVICE)
            return None
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        decode_order_header(content, BASE_MAGIC)
    except Damaged as error:
        raise Damaged(f"{path}: {error.message}", hint=ADVICE) from None
    size = header_size(content)
    head, rest = content[:size], content[size:]
    if len(rest) < _HEAD.size:
        raise Damaged(f"{path} is cut off after {len(content)} bytes", hint=ADVICE)
    length, crc = _HEAD.unpack_from(rest)
    body = rest[_HEAD.size :]
    # Longer is damage as well: a base is never appended to.
    if len(body) != length:
        raise Damaged(f"{path} holds {len(body)} bytes of a base of {length}", hint=ADVICE)
    expected = _crc(head, body)
    if crc != expected:
        raise Damaged(f"{path}: checksum {crc:08x}, expected {expected:08x}", hint=ADVICE)
    return body
