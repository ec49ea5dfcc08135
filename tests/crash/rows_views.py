"""Rows P4, P6, P8: damage seen in the folder, readers during updates, events that arrive in any order."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .compare import check_folder, segment_hashes, tree, tree_difference
from .edits import edit_at_random
from .oracle import ear
from .recovery import ended, recovered
from .rows_project import Template, plain
from .setups import zygote
from .victims import NAME, PROJECT, experiment, journal_of, located


def damaged_segment(trial: Trial) -> None:
    """P4. One segment of several is damaged: the rest is shown, the gap is told with its numbers."""
    from ml_dash.projection.project import catch_up, rebuild
    from ml_dash.reading.verify import verify

    template: Template = trial.shared
    shutil.copytree(template.folder / "store", trial.folder / "store", symlinks=True)
    path = journal_of(trial.folder)
    if trial.rng.random() < 0.5:
        # `order` has named what is damaged afterwards.
        catch_up(located(trial.folder))
        (path / "checkpoint").unlink()
    target = trial.rng.choice(sorted((path / "segments").glob("*.seg")))
    data = target.read_bytes()
    kind = trial.rng.choice(("edits", "zeros", "flip", "cut", "header"))
    header = disk.read_header(data)
    if kind == "edits":
        damaged = edit_at_random(data, trial.rng, header.size).data
    else:
        start = trial.rng.randrange(header.size, len(data) - 1)
        end = min(len(data), start + trial.rng.choice((1, 16, 4096)))
        damaged = {
            "zeros": data[:start] + bytes(end - start) + data[end:],
            "flip": _flipped(data, start, trial.rng),
            "cut": data[:start],
            "header": _flipped(data, trial.rng.randrange(header.size), trial.rng),
        }[kind]
    target.write_bytes(damaged)
    trial.counts[kind] += 1
    journal = disk.read_journal(path)
    problems = [text for text in journal.problems if "follows" not in text and "goes back" not in text]
    trial.fail(*problems)
    before = segment_hashes(path)
    place = located(trial.folder)
    lost = set(template.journal.events) - set(journal.events)
    trial.counts["events lost"] += len(lost)
    report = verify(place)
    if damaged != data and (journal.damaged_bytes or lost):
        told = sum(finding.events for finding in report.findings if finding.kind == "gap")
        last = {writer: numbers[-1] for writer, numbers in journal.writers().items()}
        inner = [key for key in lost if key[1] < last.get(key[0], -1)]
        trial.check(told == len(inner), f"{kind}: {len(inner)} numbers are missing in the middle, verify tells {told}")
        trial.check(report.findings, f"{kind}: {len(lost)} events are lost, verify finds nothing at all")
    catch_up(place)
    # Edits may have moved frames: what is read then is in the order of the bytes.
    wrong = [text for text in check_folder(place.folder, journal) if kind != "edits" or "the order of" not in text]
    trial.fail(*(f"{kind}: {text}" for text in wrong))
    kept = tree(place.folder)
    rebuild(place)
    trial.fail(*(f"{kind}, rebuilt: {text}" for text in tree_difference(kept, tree(place.folder))))
    trial.check(segment_hashes(path) == before, f"{kind}: a segment was changed")


def _flipped(data: bytes, place: int, rng: random.Random) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def readers_during_updates(trial: Trial) -> None:
    """P6. While an experiment is written and projected, documents are old or new, lines are whole but for the last."""
    with ear() as listener:
        victims = [
            trial.shared.start(
                "victims_special:projecting",
                trial.folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                count=400,
                worker=worker,
            )
            for worker in range(2)
        ]
        listener.started()
        listener.wait_for("open", 2)
        home = trial.folder / "store" / PROJECT / NAME
        deadline = time.monotonic() + 30
        seen: dict[Path, int] = {}
        while listener.listen(0.0005) and time.monotonic() < deadline:
            _read_all(trial, home, seen)
        ended(trial, listener, *victims)
        _read_all(trial, home, seen)
        recovered(trial, listener.ledger)


def _read_all(trial: Trial, home: Path, seen: dict[Path, int]) -> None:
    for path in [home / "experiment.json", home / "parameters.json", *(home / "metrics").glob("*/metadata.json")]:
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            trial.counts["documents read"] += 1
            try:
                json.loads(content)
            except ValueError:
                trial.fail(f"{path.name} was half a document: {content[-80:]!r}")
    for path in [home / "logs" / "logs.jsonl", *(home / "metrics").glob("*/data.jsonl")]:
        with contextlib.suppress(FileNotFoundError):
            start = seen.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                content = file.read()
            whole = content.rfind(b"\n") + 1
            trial.counts["line files read"] += 1
            for line in content[:whole].splitlines():
                try:
                    json.loads(line)
                except ValueError:
                    trial.fail(f"{path.name} had a broken line: {line[:100]!r}")
            seen[path] = start + whole


def any_order_of_arrival(trial: Trial) -> None:
    """P8. Stretches of several writers, in any order, twice or with gaps filled later: registers are the same."""
    from ml_dash.core.fold import Edits, State, fold

    rng = trial.rng
    template: Template = trial.shared
    by_writer: dict[str, list[Any]] = {}
    for writer, seq, kind, time_ns, body in template.journal.in_order():
        by_writer.setdefault(writer, []).append((seq, kind, time_ns, body))
    outcomes = []
    for _ in range(2):
        state, edits = State(), Edits()
        order: dict[str, list[int]] = {}
        for writer, stretch in _shuffled(rng, by_writer):
            fold(state, writer, stretch, edits)
            order.setdefault(writer, [])
        lines = [(line.message, line.metadata) for line in edits.logs]
        points = {
            name: sorted(repr(row) for block in blocks for row in block.rows) for name, blocks in edits.points.items()
        }
        registers = {key: register.value for key, register in state.parameters.items()}
        files = sorted((file.id, file.live) for file in state.files.values())
        seen = {writer.id: writer.seen for writer in state.writers.values()}
        numbers = [line.number for line in edits.logs]
        trial.check(numbers == list(range(len(numbers))), "log numbers have holes")
        outcomes.append(
            (sorted(map(repr, lines)), points, sorted(registers.items(), key=repr), files, seen, state.events)
        )
        trial.counts["events folded"] += state.events
    for what, one, other in zip(
        ("logs", "points", "parameters", "files", "numbers seen", "count"), *outcomes, strict=True
    ):
        trial.check(one == other, f"{what} depend on the order of arrival")
    trial.check(
        outcomes[0][5] == len(template.journal.events), f"{outcomes[0][5]} of {len(template.journal.events)} events"
    )


def _shuffled(rng: random.Random, by_writer: dict[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Stretches, writers mixed; some stretches come late, some twice."""
    stretches = []
    for writer, events in by_writer.items():
        cuts = sorted({0, len(events), *(rng.randrange(len(events)) for _ in range(rng.randrange(1, 12)))})
        stretches += [(writer, events[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    again = [stretch for stretch in stretches if rng.random() < 0.2]
    if rng.random() < 0.5:
        rng.shuffle(stretches)
    else:
        stretches.sort(key=lambda stretch: rng.random() * 0.3 + stretch[1][0][0] / 200)
    for number, stretch in enumerate([*stretches, *again]):
        yield stretch
        if number == len(stretches) // 2 and again:
            yield again[0]


ROWS: Final = (
    Row("P4", "a damaged segment among good ones", 10_000, 50, damaged_segment, plain),
    Row("P6", "readers during updates", 40, 2, readers_during_updates, zygote),
    Row("P8", "any order of arrival", 10_000, 60, any_order_of_arrival, plain),
)
__all__ = ["ROWS", "experiment"]
