"""The measurements of a server's engine on both pairs of stores: without HTTP, or on data of its own code's making."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns, process_time
from typing import Any, Final

from ml_dash.core import events as ev
from ml_dash.core.names import experiment_id
from ml_dash.core.sampling import LINES, PART, Extremes, Found, extend, extremes
from ml_dash.core.state import Series
from ml_dash.server.engine.archive import CHUNK_LINES
from ml_dash.server.engine.blocks import CHUNK_BLOCKS, ChunkIndex, series_of, summary_of
from ml_dash.server.engine.changes import Change
from ml_dash.server.engine.columns import encode, encode_chunk
from ml_dash.server.engine.contents import BlockEntry, object_key
from ml_dash.server.engine.series import LEVEL
from ml_dash.server.engine.services import Server
from ml_dash.server.engine.summaries import encode_summaries
from tests.server.sending import EXPERIMENT, NS, SegmentBytes

from .pairs import PAIR, Stores, pairs
from .remote_rows import serving
from .rows import Figures, row

_BATCH: Final = 20


@contextlib.contextmanager
def _engine(each: Stores) -> Iterator[Server]:
    """A server of this process on a pair of stores."""
    with contextlib.closing(Server(each.data, each.settings())) as core:
        yield core


def _send(core: Server, sheet: SegmentBytes, start: int = 0) -> int:
    """Send what a segment has from `start` on; return where it ends."""
    core.append_segment(NS, sheet.journal, sheet.file, start, bytes(sheet.data[start:]))
    return len(sheet.data)


# -- small batches ----------------------------------------------------------------------------------------------------


@row(
    "20 points of one metric to an experiment of 100 metrics, of 20,000, and with 100,000 files too: last / first ≤ 1.2"
)
def server_small_batch(folder: Path, scale: float) -> Figures:
    figures: Figures = {}
    wide, files = int(20_000 * scale), int(100_000 * scale)
    with pairs(folder) as stores:
        for each in stores:
            # In turns, so that what else the machine does meets all of them: three namespaces of one server.
            with _engine(each) as core:
                cores = {
                    "100 metrics": _Batches(core, 1, 100, 0),
                    f"{wide:,} metrics": _Batches(core, 2, wide, 0),
                    f"and {files:,} files": _Batches(core, 3, wide, files),
                }
                for _ in range(max(20, int(200 * scale))):
                    for batches in cores.values():
                        batches.one()
                for name, batches in cores.items():
                    figures[f"{each.kind} ms, {name}"] = median(batches.times) / 1e6
                    figures[f"{each.kind} CPU ms, {name}"] = batches.used_s / len(batches.times) * 1000
                first, *_, last = cores.values()
                figures[f"{each.kind} last / first"] = median(last.times) / median(first.times)
                figures[f"{each.kind} last / first, CPU"] = last.used_s / first.used_s
    return figures


class _Batches:
    """Small batches to one experiment that has so many metrics and files."""

    def __init__(self, core: Server, journal: int, metrics: int, files: int) -> None:
        self.core = core
        self.times: list[int] = []
        self.used_s = 0.0
        self._name = f"run{journal}"
        for sheet in self._sheets(journal, metrics, files):
            self._sheet, self._sent = sheet, _send(core, sheet)
        self._step = 0

    def _sheets(self, journal: int, metrics: int, files: int) -> Iterator[SegmentBytes]:
        events = [(ev.POINT, [f"layer{number:05d}/norm", {"value": 0.5, "step": 0}]) for number in range(metrics)]
        for number in range(files):
            body = {
                "path": "images", "prefix": "images", "filename": f"{number:06d}.png", "sizeBytes": 1000,
                "checksum": f"{number:064x}", "contentType": "image/png",
            }  # fmt: skip
            events.append((ev.FILE, body))
        made = SegmentBytes(journal=journal, writer=journal, name=self._name).opens()
        for number, (kind, body) in enumerate(events):
            if number and number % 4000 == 0:
                yield made
                n = number // 4000
                made = SegmentBytes(journal=journal, writer=journal, name=self._name, n=n, seq=made.seq)
            made.add(kind, body)
        yield made

    def one(self) -> None:
        """Send 20 points more, and note what it took."""
        for _ in range(_BATCH):
            self._sheet.point("layer00050/norm", value=random.random(), step=self._step)
            self._step += 1
        begun, used = perf_counter_ns(), process_time()
        self._sent = _send(self.core, self._sheet, self._sent)
        self.times.append(perf_counter_ns() - begun)
        self.used_s += process_time() - used


# -- bytes ------------------------------------------------------------------------------------------------------------


@row("of 1,000,000 points of two doubles: ≤ 120 objects, ≤ 16 bytes a point without the raw segments")
def server_bytes(folder: Path, scale: float) -> Figures:
    count = max(20_000, int(1_000_000 * scale) // 10_000 * 10_000)
    figures: Figures = {}
    rng = random.Random(1)
    with pairs(folder) as stores:
        for each in stores:
            with _engine(each) as core:
                sheet, sent = SegmentBytes().opens(), 0
                # One to which bytes are added in place: 60 MB of them.
                sheet.data = bytearray(sheet.data)  # type: ignore[assignment]
                for _ in range(0, count, 10_000):
                    for _ in range(10_000):
                        sheet.point("loss", value=rng.random(), accuracy=rng.random())
                    sent = _send(core, sheet, sent)
                    sheet.events.clear()
                core.archiver.wait()
                figures |= {f"{each.kind} {name}": value for name, value in _stored(core, count).items()}
            if each.kind == PAIR:
                figures |= {f"{each.kind} {name}": value for name, value in _documents(each, count).items()}
    return figures


def _stored(core: Server, count: int) -> Figures:
    with core.documents.view() as view:
        head = view.experiment(NS, EXPERIMENT)
        assert head is not None
        contents = core._changes.reader.contents(view, NS, head)
        segments = [segment for journal in contents.journals() for segment in contents.segments(journal.id)]
        entries = [entry for segment in segments for entry in contents.raw(segment.id, 0, segment.length)]
        waiting = {entry.page for entry in entries if entry.page}
        pages = [page for page in contents.pages() if page not in waiting]
        chunks = {object_key(NS, EXPERIMENT, entry.chunk) for entry in contents.blocks(series_of("loss"), 0, count)}
        raw = {key for key in contents.objects() if key not in chunks}
        tree = sum(len(page) for page in view.pages(NS, EXPERIMENT, pages).values())
        raw_bytes = sum(entry.length for entry in entries)
    sizes = {key: size for key, size, _ in core.objects.entries("")}
    assert len(chunks) == count // 10_000
    return {
        "chunks": len(chunks), "raw objects": len(raw), "objects per 1,000,000": len(sizes) / count * 1_000_000,
        "bytes per point, chunks": sum(sizes[key] for key in chunks) / count,
        "bytes per point, pages": tree / count,
        "bytes per point, chunks and pages": (tree + sum(sizes[key] for key in chunks)) / count,
        "bytes per point, raw segments": raw_bytes / count,
        "pages": len(pages), "pages of raw segments": len(waiting),
    }  # fmt: skip


def _documents(each: Stores, count: int) -> Figures:
    """What a database has once it is mended: what was superseded is deleted after a while."""
    import bson
    import pymongo

    with _engine(each) as core:
        core.mend()
    found: Figures = {}
    with pymongo.MongoClient[Any](each.environment["MONGODB_URI"]) as client:
        database = client.get_default_database()
        for name in sorted(database.list_collection_names()):
            sizes = [len(bson.encode(document)) for document in database[name].find()]
            if sizes:
                found[f"documents, {name}"] = len(sizes)
                found[f"document bytes per point, {name}"] = sum(sizes) / count
    return found


# -- what a small batch writes ----------------------------------------------------------------------------------------


@row("documents, bytes and puts of one small batch of 20 points, and of a point in batches of 10,000; for comparison")
def server_writes(folder: Path, scale: float) -> Figures:
    figures: Figures = {}
    with pairs(folder) as stores:
        if len(stores) < 2:
            return figures
        from pymongo import monitoring

        counted = _counting()
        monitoring.register(counted)
        each = stores[1]
        with _engine(each) as core:
            batches = _Batches(core, 1, 100, 0)
            # Ten thousand of a metric are a chunk, so that archiving is in it.
            rounds = max(20, int(500 * scale))
            batches.one()
            counted.clear()
            before, services = process_time(), each.cpu_s()
            for _ in range(rounds):
                batches.one()
            core.archiver.wait()
            figures |= counted.figures(rounds)
            figures["CPU ms, server and client"] = (process_time() - before) / rounds * 1000
            for name, used in each.cpu_s().items():
                figures[f"CPU ms, {name}"] = (used - services[name]) / rounds * 1000
            figures["objects put"] = len(list(core.objects.list(""))) / rounds
    return figures


def _counting() -> Any:
    from pymongo import monitoring

    class Counting(monitoring.CommandListener):  # type: ignore[misc]
        """Commands that the database is asked, and the documents and bytes in them."""

        def __init__(self) -> None:
            self.clear()

        def clear(self) -> None:
            """Begin anew."""
            self.commands: Counter[str] = Counter()
            self.documents: Counter[str] = Counter()
            self.written = 0

        def started(self, event: Any) -> None:
            import bson

            self.commands[event.command_name] += 1
            for kind in ("documents", "updates", "deletes"):
                items = event.command.get(kind, ())
                self.documents[kind] += len(items)
                if kind != "deletes":
                    self.written += sum(len(bson.encode(item)) for item in items)

        def succeeded(self, event: Any) -> None:
            pass

        def failed(self, event: Any) -> None:
            pass

        def figures(self, rounds: int) -> Figures:
            """All of it for each of so many rounds."""
            return {
                **{f"commands, {name}": count / rounds for name, count in sorted(self.commands.items())},
                "documents inserted": self.documents["documents"] / rounds,
                "documents updated": self.documents["updates"] / rounds,
                "documents deleted": self.documents["deletes"] / rounds,
                "bytes written": self.written / rounds,
            }

    return Counting()


# -- charts -----------------------------------------------------------------------------------------------------------


@row("1,000 of 10,000,000 points, warm: ≤ 50 ms; of 100,000,000: ≤ 100 ms")
def server_charts(folder: Path, scale: float) -> Figures:
    """By HTTP; the chunks are made by the store's own code, all of one content, and named as if there were many."""
    figures: Figures = {}
    with pairs(folder) as stores:
        for each in stores:
            place = replace(each, data=folder / each.kind / "data")
            counts = {"10 M": int(10_000_000 * scale), "100 M": int(100_000_000 * scale)}
            with _engine(place) as core:
                for number, count in enumerate(counts.values()):
                    _fill(core, number, max(LEVEL, count // LEVEL * LEVEL))
            with serving(folder / each.kind, each.environment) as server:
                for number, (name, count) in enumerate(counts.items()):
                    count = max(LEVEL, count // LEVEL * LEVEL)
                    path = f"/experiments/{experiment_id('cv', f'chart{number}')}/metrics/loss/series"
                    times = []
                    for _ in range(15):
                        begun = perf_counter_ns()
                        shown = server.get(path, points=1000)
                        times.append((perf_counter_ns() - begun) / 1e6)
                        assert shown["series"]["loss"]["count"] == shown["totalDataPoints"] == count
                    zoomed = []
                    for turn in range(10):
                        # A third of it, each time another one.
                        begun = perf_counter_ns()
                        server.get(path, points=1000, start=count // 3 + turn * 7777, end=count // 3 * 2 + turn * 7777)
                        zoomed.append((perf_counter_ns() - begun) / 1e6)
                    figures |= {
                        f"{each.kind} {name}, first ms": times[0],
                        f"{each.kind} {name}, warm ms": median(times[1:]),
                        f"{each.kind} {name}, warm ms at best": min(times[1:]),
                        f"{each.kind} {name}, a third ms": median(zoomed),
                    }
    return figures


def _fill(core: Server, number: int, count: int) -> None:
    """An experiment with so many points of `loss`, all in chunks."""
    name = f"chart{number}"
    sheet = SegmentBytes(journal=10 + number, writer=10 + number, name=name).opens()
    sheet.point("loss", value=0.5, step=0)
    _send(core, sheet)
    rng = random.Random(number)
    rows = [{"value": rng.random(), "step": index} for index in range(CHUNK_LINES)]
    data = [encode(rows[low : low + LINES], low + 1, deflate=True) for low in range(0, CHUNK_LINES, LINES)]
    content, places = encode_chunk(data)
    # Those of the first chunk stand in all: no chart of this row is so fine that it reads them.
    parts = encode_summaries([extremes(rows[i : i + PART], i) for i in range(0, CHUNK_LINES, PART)], deflate=True)
    each = [extremes(rows[low : low + LINES], low) for low in range(0, CHUNK_LINES, LINES)]
    chunk = os.urandom(8).hex()
    experiment = experiment_id("cv", name)
    core.objects.put_bytes(object_key(NS, experiment, chunk), content)
    for begun in range(0, count, LEVEL):
        with core._changes.changing(NS, experiment) as change:
            if not begun:
                change.draft.drop_blocks()
                change.open_blocks = {}
            whole: Extremes = {}
            for first in range(begun, begun + LEVEL, CHUNK_LINES):
                summary = _put_chunk(change, first, places, parts, each, chunk)
                extend(whole, summary)
            change.draft.put_level(series_of("loss"), begun, LEVEL, summary_of(whole))
            metric = change.state.metrics["loss"]
            metric.count = begun + LEVEL
            metric.series["value"] = replace(metric.series.get("value", Series()), count=metric.count)
            change.changed = True
            change.commit()


def _put_chunk(
    change: Change, first: int, places: list[tuple[int, int]], parts: bytes, each: list[Extremes], chunk: str
) -> Extremes:
    """Note a chunk from `first` on; return the summary of it."""
    blocks = [_moved(summary, first) for summary in each]
    whole: Extremes = {}
    for summary in blocks:
        extend(whole, summary)
    index = ChunkIndex(
        [(first + number * LINES, LINES, *places[number]) for number in range(CHUNK_BLOCKS)],
        encode_summaries(blocks, deflate=True),
        parts,
    )
    page = change.draft.page(index.encoded())
    entry = BlockEntry(first, CHUNK_LINES, True, page, summary_of(whole), chunk)
    change.draft.put_chunk(series_of("loss"), entry, ())
    return whole


def _moved(summary: Extremes, by: int) -> Extremes:
    """The summary of the same points further on."""

    def moved(found: Found) -> Any:
        return (found[0], *((index + by, x + by, value) for index, x, value in found[1:]))

    return {name: moved(found) for name, found in summary.items()}
