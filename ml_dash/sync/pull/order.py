"""The server's merge of an experiment, in the form of a journal's `order`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ...core.frames import LengthCrcs, OrderHeader, encode_frame, encode_header
from ...disk.durable import replace_file
from ...errors import Damaged
from ...journal.order import DEATH, STRETCH, MergeRecord, Order, death_payload, stretch_payload
from ...journal.segment import ORDER

_ID: Final = re.compile(r"[0-9a-f]{32}")


def checked(record: Any) -> list[Any]:
    """Return a record of a server's order, its fields checked. Raises Damaged for anything else."""
    kind, who, third, end = record if isinstance(record, list) and len(record) == 4 else (0, "", 0, 0)
    sound = isinstance(who, str) and _ID.fullmatch(who) is not None and type(end) is int and end >= 0
    if kind == STRETCH:
        sound = sound and type(third) is int and 0 <= third <= end
    else:
        sound = sound and kind == DEATH and isinstance(third, str) and _ID.fullmatch(third) is not None
    if not sound:
        raise Damaged(f"the server's order holds {str(record)[:200]!r}, which is no record of an order")
    return [kind, who, third, end]


def joined(records: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Yield the records with adjacent stretches of a segment joined into one: uploads arrive in small pieces."""
    waiting: list[Any] | None = None
    for record in records:
        if waiting is not None and record[:3] == [STRETCH, waiting[1], waiting[3]] and waiting[0] == STRETCH:
            waiting[3] = record[3]
            continue
        if waiting is not None:
            yield waiting
        waiting = list(record)
    if waiting is not None:
        yield waiting


def lengths(records: list[list[Any]]) -> dict[str, int]:
    """Return how many bytes of each segment, by its id, the server has merged."""
    totals: dict[str, int] = {}
    for kind, who, _, end in records:
        if kind == STRETCH:
            totals[who] = max(totals.get(who, 0), end)
    return totals


def payload(record: list[Any]) -> bytes:
    """Encode a record as the payload of a frame of `order`."""
    kind, who, third, end = record
    return stretch_payload(who, third, end) if kind == STRETCH else death_payload(who, third, end)


def write_order(journal: Path, identity: OrderHeader, payloads: list[bytes]) -> None:
    """Replace the `order` of a journal, or create it. Durable on return."""
    header = encode_header(identity)
    crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
    replace_file(journal / ORDER, header + b"".join(encode_frame(payload, crcs) for payload in payloads), sync=True)


def ends(order: Order) -> dict[str, int]:
    """Return how many bytes of each segment, by its id, an order names."""
    named: dict[str, int] = {}
    for record, _ in order.read(0):
        if isinstance(record, MergeRecord):
            named[record.segment] = max(named.get(record.segment, 0), record.end)
    return named


def ends_in(journal: Path) -> dict[str, int]:
    """Return `ends` of the order of a journal."""
    order = Order(journal)
    order.open(write=False)
    try:
        return ends(order)
    finally:
        order.close()
