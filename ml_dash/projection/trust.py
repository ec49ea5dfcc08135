"""The check of a checkpoint against the journal and the folder before it is used.

Neither the checkpoint nor the folder is ever synced. While the machine runs that does not matter, even if a process is
killed. After another boot (or on another machine, over a network), bytes that were not read from disk since are read
again: frames by their checksums, lines by the CRC that the checkpoint keeps. That costs time in proportion to what is
new, where folding again would cost time in proportion to everything.

Two questions are asked, and both must be answered with yes before a checkpoint is used:

    is it consistent?   its parts agree with each other: counts, marks, spans, names of writers, paths that stay inside
    has it survived?    the bytes that it counts are there: always the sizes; after another boot, their checksums

The first is asked each time, because a checkpoint may come with a copied or unpacked store, and its content decides
where this process writes. The second costs reading, so each file has a safe length (`LineFile.safe`,
`Checkpoint.safe`): bytes below it were read from disk after some boot, and since a projection only appends, they need
not be read again.

If the answer is no, the projector begins at the base or at the first event. Nothing is repaired here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.events import Malformed, changes, mapping
from ..core.state import Metric, State
from ..disk.durable import boot_id, crc_of
from ..errors import JournalError
from ..journal.reader import Segment, Stretch, open_segment, read
from ..journal.segment import ORDER, list_segments
from .checkpoint import LINES_PER_MARK, Checkpoint, LineFile
from .folder import Folder


def holds(checkpoint: Checkpoint, folder: Folder) -> bool:
    """True if all that the checkpoint counts is there. Bytes that were checked are marked in it as safe."""
    try:
        return (
            is_consistent(checkpoint)
            and all(path.stat().st_size >= lines.size for path, lines in folder.line_files())
            and (checkpoint.boot == boot_id() or _survived(checkpoint, folder))
        )
    except (OSError, JournalError):
        return False


def is_consistent(checkpoint: Checkpoint) -> bool:
    """True if the parts of a checkpoint agree. A CRC does not prove that: somebody may have forged it."""
    state, layout = checkpoint.state, checkpoint.layout
    counts = {name: metric.count for name, metric in state.metrics.items() if metric.count}
    return (
        layout.logs.lines == state.logs
        and {name: lines.lines for name, lines in layout.metrics.items()} == counts
        and all(_has_marks(lines) for lines in (layout.logs, *layout.metrics.values()))
        and all(map(_has_spans, state.metrics.values()))
        and state.writers.keys() >= {rewind.writer for rewind in state.rewinds}
        and state.writers.keys() >= {*state.session, *state.alive}
        and state.files.keys() >= set(chain.from_iterable(state.places.values()))
        and all(map(_stays_inside, layout.placed))
        and all(map(_may_be_recorded, _values(state)))
    )


def _values(state: State) -> Iterator[dict[str, Any]]:
    """Yield all values that callers gave."""
    for owner in (state, *state.metrics.values(), *state.files.values()):
        keys = ("description", "tags", "metadata", *(("folder",) if owner is state else ()))
        yield {key: getattr(owner, key).value for key in keys}
    yield {"metadata": {key: register.value for key, register in state.parameters.items()}}
    for writer in state.writers.values():
        yield {"metadata": {"place": writer.place, "error": writer.error}}


def _may_be_recorded(given: dict[str, Any]) -> bool:
    """True if an event could have brought these values: they are the same after the checks that events go through."""
    try:
        return changes(mapping(given), *given) == given
    except Malformed:
        return False


def _has_marks(lines: LineFile) -> bool:
    """True if there is a mark for each line that needs one, at offsets that grow from 0 up to the size."""
    ends, first = [*lines.marks, lines.size], lines.first
    marks = -(-lines.lines // LINES_PER_MARK) - first // LINES_PER_MARK if lines.lines > first else 0
    return 0 <= first <= lines.lines and len(lines.marks) == marks and sorted(ends) == ends and ends[0] == 0


def _has_spans(metric: Metric) -> bool:
    """True if a metric's spans are in order, and its superseded ranges too, and within its points."""
    ends = [0, *(span.end for span in metric.spans)]
    bounds = [bound for superseded in metric.superseded for bound in superseded]
    return (
        ends == sorted(set(ends))
        and bounds == sorted(set(bounds))
        and max(ends[-1], *bounds[-1:], 0) <= metric.count
        and min(bounds, default=0) >= 0
    )


def _stays_inside(path: str) -> bool:
    """True if a path under `files/` leads nowhere else. A projector writes and removes at these paths."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not PurePosixPath(path).is_absolute() and ".." not in parts


def _survived(checkpoint: Checkpoint, folder: Folder) -> bool:
    """Read again what was written since it was last read from disk; True if all of it is right."""
    if not _segments_survived(checkpoint, folder.journal):
        return False
    for path, lines in [(folder.journal / ORDER, checkpoint.order), *folder.line_files()]:
        if crc_of(path, lines.safe, lines.size) != lines.crc:
            return False
        # Read from disk since this boot, and right: from here on only what is appended is covered by the CRC.
        lines.safe, lines.crc = lines.size, 0
    return True


def _segments_survived(checkpoint: Checkpoint, journal: Path) -> bool:
    """True if the bytes of segments that were folded still hold whole frames.

    A power cut may take the unsynced end of a segment. If that was folded, lines in the folder speak of events that
    the journal does not have, and they must go.
    """
    for _, path in list_segments(journal):
        safe = checkpoint.safe.get(path.name, 0)
        # All of it was read, and read again after a boot: a segment is never changed below its end.
        if checkpoint.settled.get(path.name) == safe:
            continue
        segment = open_segment(path)
        covered = checkpoint.covered.get(segment.id) if segment is not None else None
        if segment is None or not covered:
            continue
        # Bytes for which a base stands are not read again.
        seen = max(safe, checkpoint.stood.get(segment.id, 0))
        if not all(_is_all_frames(segment, max(start, seen), end) for start, end in covered if end > seen):
            return False
        checkpoint.safe[path.name] = covered[-1][1]
    return True


def _is_all_frames(segment: Segment, start: int, end: int) -> bool:
    """True if [start, end) holds whole frames without a gap. Their checksums stand for their content."""
    position = start
    for item in read(segment, start, end):
        if not isinstance(item, Stretch) or item.start != position:
            return False
        position = item.end
    return position == end


def seal(checkpoint: Checkpoint, journal: Path) -> None:
    """Extend the checkpoint's CRC of `order` to the position that it has now."""
    sealed = checkpoint.order
    crc = crc_of(journal / ORDER, sealed.size, checkpoint.order_position, sealed.crc)
    if crc is not None:
        sealed.size, sealed.crc = checkpoint.order_position, crc
