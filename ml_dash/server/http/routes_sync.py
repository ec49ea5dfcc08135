"""Routes of the sync protocol, /sync/v1: see docs/protocol.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, TypedDict

import msgspec
from starlette.responses import Response

from ...core.protocol import MAX_BATCH_BYTES, MAX_BLOBS, ORDER_PAGE, PREFIX, UNKNOWN, Refused
from ...journal.segment import parse_blob, parse_name
from .calls import READ, WRITE, Call, Route, answer, malformed
from .downloads import download

LARGEST_OFFSET: Final = 1 << 50
_RANGE: Final = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")
_LONGEST_LIST: Final = 64 << 10  # characters of a list in the query
_contents: Final = msgspec.msgpack.Decoder(list[tuple[str, bytes]])


class _Death(TypedDict):
    writer: str
    segment: str
    end: int


class Deaths(TypedDict):
    """The body of `.../deaths`: a writer is dead, and its `segment` had been read to byte `end`."""

    deaths: list[_Death]


class Digests(TypedDict):
    """The body of `.../digests`: how many bytes of which segments to hash."""

    segments: dict[str, int]


async def journal(call: Call) -> Response:
    """The state of a journal here: lengths of its segments, blobs that are here or missing, dead writers."""
    return answer(await call.read(call.core.journal, call.namespace, call.journal()))


async def append_segment(call: Call) -> Response:
    """Append bytes of a segment, whole frames. The answer goes out once they are durable and folded, not before."""
    file = call.parts["file"]
    if parse_name(file) is None:
        malformed("the path does not end in the name of a segment file")
    offset = call.integer("offset", None, 0, LARGEST_OFFSET)
    damaged, without = _damaged(call), _without(call)
    async with call.body(MAX_BATCH_BYTES) as data:
        return answer(
            await call.write(
                call.core.append_segment,
                call.namespace, call.journal(), file, offset, data, damaged=damaged, without=without,
            )
        )  # fmt: skip


async def deaths(call: Call) -> Response:
    """Report writers that were found dead. A report counts once, and not if later events of the writer are here."""
    async with call.json(Deaths) as body:
        return answer(await call.write(call.core.deaths, call.namespace, call.journal(), body["deaths"]))


async def blob_state(call: Call) -> Response:
    """How many bytes of a blob are here. One whose content the namespace has already is linked, and complete."""
    # Linking writes: so this GET takes a writer thread.
    return answer(await call.write(call.core.blob_state, call.namespace, call.journal(), _blob(call)))


async def append_blob(call: Call) -> Response:
    """Append bytes of a blob at `offset`; its SHA-256 is checked once all `size` bytes are here."""
    name, offset = _blob(call), call.integer("offset", None, 0, LARGEST_OFFSET)
    size = call.integer("size", None, 0, LARGEST_OFFSET)
    kind = call.text("kind")
    if kind not in (None, "body", "file"):
        malformed("kind is neither body nor file")
    async with call.body(MAX_BATCH_BYTES) as data:
        return answer(
            await call.write(
                call.core.append_blob,
                call.namespace, call.journal(), name, offset, size, data, body=kind == "body",
            )
        )  # fmt: skip


async def append_blobs(call: Call) -> Response:
    """Send whole contents of small files together; answers with the names that need not be sent any more."""
    async with call.body(MAX_BATCH_BYTES) as data:
        try:
            items = _contents.decode(data)
        except ValueError:
            # A caller who may not see the journal gets 404, and learns nothing else.
            await call.read(call.core.journal, call.namespace, call.journal())
            malformed("the body is not a list of pairs of a name and a content, in msgpack")
        if len(items) > MAX_BLOBS or not all(parse_blob(name) for name, _ in items):
            malformed(f"send at most {MAX_BLOBS:,} contents together, each with the name of a blob")
        return answer(await call.write(call.core.append_blobs, call.namespace, call.journal(), items))


async def digests(call: Call) -> Response:
    """SHA-256 of the first bytes of segments, for a proof."""
    async with call.json(Digests) as body:
        return answer(await call.read(call.core.digests, call.namespace, call.journal(), body["segments"]))


async def find_experiment(call: Call) -> Response:
    """An experiment by project and name, with the ids of its journals."""
    project, name = call.text("project"), call.text("name")
    if project is None or name is None:
        malformed("project and name must be given")
    return answer(await call.read(call.core.find_experiment, call.namespace, project, name))


async def order(call: Call) -> Response:
    """Records of what was folded into an experiment, in order of arrival."""
    after, limit = call.integer("after", 0, 0, LARGEST_OFFSET), call.integer("limit", 1000, 1, ORDER_PAGE)
    return answer(await call.read(call.core.order, call.namespace, call.experiment(), after, limit))


async def segment_bytes(call: Call) -> Response:
    """Raw bytes of a segment from `offset`; headers give its length, file and journal."""
    offset = call.integer("offset", 0, 0, LARGEST_OFFSET)
    limit = call.integer("limit", MAX_BATCH_BYTES // 2, 1, MAX_BATCH_BYTES)
    data, headers = await call.read(call.core.segment_bytes, call.namespace, call.segment(), offset, limit)
    return _bytes(data, "application/octet-stream", headers)


async def base(call: Call) -> Response:
    """The folded state of an experiment as a base, for a pull of the state only; msgpack."""
    return _bytes(await call.read(call.core.base, call.namespace, call.experiment()), "application/vnd.msgpack", {})


async def experiment_blob(call: Call) -> Response:
    """The content of a blob, whole or by range."""
    experiment, name = call.experiment(), _blob(call)

    def open_at(start: int, end: int) -> tuple[Iterator[bytes], int]:
        return call.core.open_blob(call.namespace, experiment, name, start, end)

    return await download(call, open_at, checksum=name[:64], filename=name)


async def remove_experiment(call: Call) -> Response:
    """Remove an experiment. Its tombstone hides late events of its writers."""
    return answer(await call.write(call.core.remove_experiment, call.namespace, call.experiment()))


def _bytes(data: bytes, kind: str, headers: dict[str, Any]) -> Response:
    shown = {name: str(value) for name, value in headers.items()}
    return Response(data, headers={"Cache-Control": "no-store", **shown}, media_type=kind)


def _blob(call: Call) -> str:
    if parse_blob(call.parts["blob"]) is None:
        raise Refused(404, UNKNOWN, "that is not the name of a blob")
    return call.parts["blob"]


def _damaged(call: Call) -> list[tuple[int, int]]:
    """Return the byte ranges of the segment that the client calls damaged. Raises Refused (400)."""
    text = call.text("damaged", _LONGEST_LIST)
    ranges = []
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None or int(match[1]) >= int(match[2]):
            malformed("damaged is not of the form a-b,c-d")
        ranges.append((int(match[1]), int(match[2])))
    return ranges


def _without(call: Call) -> list[str]:
    """Return the names of blobs that the client cannot send. Raises Refused (400)."""
    text = call.text("without", _LONGEST_LIST)
    names = text.split(",") if text else []
    if any(parse_blob(name) is None for name in names):
        malformed("without does not list names of blobs")
    return names


ROUTES: Final = [
    Route("POST", f"{PREFIX}/journals/{{journal}}/segments/{{file}}", append_segment, WRITE),
    Route("GET", f"{PREFIX}/journals/{{journal}}", journal, READ),
    Route("POST", f"{PREFIX}/journals/{{journal}}/deaths", deaths, WRITE),
    Route("GET", f"{PREFIX}/journals/{{journal}}/blobs/{{blob}}/state", blob_state, READ),
    Route("PUT", f"{PREFIX}/journals/{{journal}}/blobs/{{blob}}", append_blob, WRITE),
    Route("POST", f"{PREFIX}/journals/{{journal}}/blobs", append_blobs, WRITE),
    Route("POST", f"{PREFIX}/journals/{{journal}}/digests", digests, READ),
    Route("GET", f"{PREFIX}/experiments", find_experiment, READ),
    Route("GET", f"{PREFIX}/experiments/{{experiment}}/order", order, READ),
    Route("GET", f"{PREFIX}/segments/{{segment}}", segment_bytes, READ),
    Route("GET", f"{PREFIX}/experiments/{{experiment}}/base", base, READ),
    Route("GET", f"{PREFIX}/experiments/{{experiment}}/blobs/{{blob}}", experiment_blob, READ),
    Route("DELETE", f"{PREFIX}/experiments/{{experiment}}", remove_experiment, WRITE),
]
