"""`ml-dash dump`: the frames of a journal, in readable form."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from ml_dash.cli import console, options
from ml_dash.core.events import NAMES
from ml_dash.core.frames import HEAD
from ml_dash.core.values import utc_text
from ml_dash.journal import bodies, reader
from ml_dash.journal.segment import list_segments, parse_name
from ml_dash.reading import read

Entry = dict[str, Any]
_BODY_COLUMN = 66


@click.command()
@click.argument("experiment", required=False, shell_complete=options.complete_experiment)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N frames of each segment.")
@click.option("--full", is_flag=True, help="Whole bodies; in a terminal they are cut to its width.")
@options.path_option
@options.json_option
def command(experiment: str | None, limit: int | None, full: bool, path: Path | None, as_json: bool) -> None:
    """Print the frames of a segment file, or of all segments of an experiment.

    Reads nothing but segments, so it works where the rest is damaged. With --json, one object a line.
    """
    width = console.width() if console.on_terminal(sys.stdout) and not full else None
    for segment in _segments(experiment, path):
        for number, entry in enumerate(_entries(segment)):
            if limit is not None and number > limit:
                break
            if as_json:
                console.print_json(entry, indent=None)
            else:
                console.print_text(_line(entry, width))


def _segments(experiment: str | None, path: Path | None) -> list[Path]:
    if experiment is not None and parse_name(Path(experiment).name):
        return [Path(experiment)]
    return [segment for _, segment in list_segments(read.locate(experiment, path).journal)]


def _entries(path: Path) -> Iterator[Entry]:
    """The header of a segment, then its parts by offset: frames, gaps, and what is left at the end."""
    segment = reader.open_segment(path)
    if segment is None:
        yield {"segment": path.name, "what": "torn header", "offset": 0, "size": path.stat().st_size}
        return
    header = segment.header
    yield {
        "segment": path.name, "what": "damaged header" if segment.damaged else "header", "offset": 0,
        "size": segment.first, "project": header.project, "name": header.name, "writer": header.writer.hex(),
        "number": header.n, "firstSequence": header.first_seq, "createdAt": utc_text(header.created_ns),
        "journalId": header.journal.hex(), "segmentId": segment.id,
    }  # fmt: skip
    with path.open("rb") as file:
        for part in reader.read(segment, segment.first):
            if isinstance(part, reader.Stretch):
                file.seek(part.start)
                offset = part.start
                for event in part.events:
                    length = HEAD.size + HEAD.unpack(file.read(HEAD.size))[0]
                    file.seek(offset + length)
                    yield _frame(path.name, offset, length, event)
                    offset += length
            else:
                what = "gap"
                if isinstance(part, reader.Tail):
                    what = "torn tail" if reader.is_partial(segment, part) else "tail"
                yield {
                    "segment": path.name,
                    "what": what,
                    "offset": part.start,
                    "size": part.end - part.start,
                }


def _frame(segment: str, offset: int, length: int, event: tuple[int, int, int, Any]) -> Entry:
    sequence, kind, time_ns, body = event
    if isinstance(body, msgspec.msgpack.Ext):
        kept = bodies.reference(body)
        if kept is not None:
            body = {"blob": kept[0].hex(), "size": kept[1]}
        else:
            body = {"extension": body.code, "data": bytes(body.data)}
    return {
        "segment": segment, "what": "frame", "offset": offset, "size": length, "sequence": sequence,
        "kind": NAMES.get(kind, str(kind)), "time": utc_text(time_ns), "body": _plain(body),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a value of msgpack as JSON can show it. It may hold anything: any program may have written it."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bytes | None) else str(value)


def _line(entry: Entry, width: int | None) -> str:
    where = f"{entry['offset']:>10} {entry['size']:>8}"
    if entry["what"] == "frame":
        kind = console.styled(f"{entry['kind']:<11}", "cyan")
        body = console.value_text(entry["body"])
        if width is not None and len(body) > max(width - _BODY_COLUMN, 20):
            more = "..." if console.is_plain() else "…"
            body = body[: max(width - _BODY_COLUMN, 20) - len(more)] + more
        return f"{where} {entry['sequence']:>8} {kind} {entry['time'][:23]} {body}"
    if entry["what"].endswith("header") and "writer" in entry:
        name = console.safe(f"{entry['project']}/{entry['name']}")
        what = f"{entry['what']} of {name}, writer {entry['writer']}"
        return console.styled(f"{entry['segment']}\n{where} {what}", "bold")
    return f"{where} {console.styled(entry['what'], 'red' if entry['what'] == 'gap' else 'yellow')}"
