"""Rows P1, P2, P3, P5, P7: projectors that are killed, lied to, starved, and run beside each other."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.faults import shim
from tests.faults.harness import Row, Trial
from tests.faults.zygote import Zygote

from . import oracle_reader as disk
from .compare import changed_segments, check_folder, segment_hashes, tree, tree_difference
from .oracle import Reporter, ear
from .rows_kill import PROJECTOR_POINTS
from .setups import shimmed, zygote
from .victims import NAME, PROJECT, Caller, experiment, journal_of, located, sources_of


@dataclass
class Template:
    """A journal that was never projected, and what its folder must be."""

    folder: Path
    journal: disk.Journal
    segments: dict[str, tuple[int, str]]
    wanted: dict[str, str]
    zygote: Zygote | None


def _make(workdir: Path, made_by: Zygote) -> Template:
    """Three writers, some killed, some hundred events, files that replace each other; and what their folder must be."""
    folder = workdir / "template"
    folder.mkdir(parents=True)
    with ear() as listener:
        for worker in range(3):
            victim = made_by.start(
                "victims:mixed",
                folder,
                pipe=listener.write,
                seed=f"{worker}",
                worker=worker,
                count=150,
                close=worker != 1,
            )
            victim.wait()
            listener.hear()
        listener.finish()
    path = journal_of(folder)
    _tear_the_tail_of_the_killed(path)
    segments = segment_hashes(path)
    _forget_what_is_derived(path)
    # Contents are released when the folder is brought up to date: this one is the template of the template.
    _catch_up(folder)
    wanted = tree(path.parent)
    _forget_what_is_derived(path)
    return Template(folder, disk.read_journal(path), segments, wanted, None)


def _tear_the_tail_of_the_killed(path: Path) -> None:
    """The beginning of a frame at the end of the segment without a closing event: it is to stay there for ever."""
    for segment in disk.read_journal(path).segments:
        assert segment.header is not None
        if all(frame.kind != disk.CLOSE for frame in segment.frames):
            header = segment.path.read_bytes()[: segment.header.size]
            frame = disk.make_frame(header, segment.frames[-1].seq + 1, disk.LOG, 1, ["info", "torn", None])
            with segment.path.open("ab") as file:
                file.write(frame[:20])


def _forget_what_is_derived(path: Path) -> None:
    for entry in path.parent.iterdir():
        if entry.name != ".journal":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name in ("checkpoint", "turn.lock"):
        (path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def plain(workdir: Path) -> Iterator[Template]:
    """A setup: a template, and victims."""
    with zygote(workdir) as made_by:
        template = _make(workdir, made_by)
        template.zygote = made_by
        yield template


@contextlib.contextmanager
def with_shim(workdir: Path) -> Iterator[Template]:
    """A setup: a template, and victims with the shim."""
    with shimmed(workdir) as made_by:
        template = _make(workdir, made_by)
        template.zygote = made_by
        yield template


def _catch_up(folder: Path) -> None:
    from ml_dash.projection.project import catch_up

    catch_up(located(folder))


def _rebuild(folder: Path) -> None:
    from ml_dash.projection.project import rebuild

    rebuild(located(folder))


def _copy(trial: Trial) -> Path:
    """A copy of the template in the trial's folder; the documented folder of the copy."""
    template: Template = trial.shared
    shutil.copytree(template.folder / "store", trial.folder / "store", symlinks=True)
    return trial.folder / "store" / PROJECT / NAME


def _must_be_whole(trial: Trial, when: str, home: Path) -> None:
    template: Template = trial.shared
    trial.fail(*(f"{when}: {text}" for text in tree_difference(template.wanted, tree(home))))
    trial.fail(*changed_segments(home / ".journal", template.segments))


def killed_while_projecting(trial: Trial) -> None:
    """P1. A projector is killed anywhere, some times; at last the folder is what a single pass makes, byte for byte."""
    home = _copy(trial)
    template: Template = trial.shared
    assert template.zygote is not None
    for _ in range(trial.rng.randrange(1, 4)):
        random_time = trial.rng.random() < 0.5
        point = f"{trial.rng.choice(PROJECTOR_POINTS)}:{trial.rng.randrange(1, 8)}:kill"
        victim = template.zygote.start(
            "victims:project",
            trial.folder,
            env={} if random_time else {"ML_DASH_FAIL": point},
            slices=trial.rng.choice((0, 7, 40)),
            rounds=3,
        )
        if random_time and not victim.exited(trial.rng.uniform(0, 0.03)):
            victim.kill()
        status = victim.wait()
        trial.counts["killed"] += status == -signal.SIGKILL
        trial.check(status in (0, -signal.SIGKILL), f"the projector ended with {status}: {victim.told()}")
        if trial.rng.random() < 0.3:
            _look_at(trial, home)
    _catch_up(trial.folder)
    _must_be_whole(trial, "after kills", home)
    if trial.index % 4 == 0:
        _rebuild(trial.folder)
        _must_be_whole(trial, "rebuilt", home)


def _look_at(trial: Trial, home: Path) -> None:
    """Whatever a killed projector left: documents are whole or absent, lines are whole but for a last one."""
    import json

    for path in home.rglob("*.json"):
        if ".journal" in path.parts or path.name.startswith("."):
            continue
        try:
            json.loads(path.read_bytes())
        except ValueError:
            trial.fail(f"{path.name} is half written")
    for path in home.rglob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            if not line.startswith(b"{") or not line.endswith(b"}"):
                trial.fail(f"{path.name} has a broken line: {line[:80]!r}")


def _damage(trial: Trial, home: Path) -> str:
    """Delete, cut or edit something derived; what was done."""
    rng = trial.rng
    choices = [
        path
        for path in home.rglob("*")
        if path.is_file() and "segments" not in path.parts and "blobs" not in path.parts
    ]
    choices = [path for path in sorted(choices) if path.name != "order" and not path.name.endswith(".lock")]
    path = rng.choice(choices)
    kind = rng.choice(("delete", "cut", "edit", "append", "empty", "delete folder"))
    data = bytearray(path.read_bytes())
    if path.is_file() and path.stat().st_nlink > 1:
        # An added file is the blob itself, or a link to it: what an editor does is to write a new file.
        path.unlink()
    if kind == "delete":
        path.unlink(missing_ok=True)
    elif kind == "delete folder":
        folder = rng.choice([home / "logs", home / "metrics", home / "files", home / "metrics" / "m0"])
        shutil.rmtree(folder, ignore_errors=True)
        return f"{folder.name}/ deleted"
    else:
        if kind == "cut":
            del data[rng.randrange(len(data) + 1) :]
        elif kind == "empty":
            data.clear()
        elif kind == "append":
            data += rng.randbytes(rng.randrange(1, 50))
        elif data:
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    return f"{path.relative_to(home)}: {kind}"


def edited_folder(trial: Trial) -> None:
    """P2. Somebody edits what is derived: `rebuild` mends it, `verify` tells what `catch_up` did not mend by itself."""
    from ml_dash.reading.verify import verify

    home = _copy(trial)
    _catch_up(trial.folder)
    if trial.index % 5 == 0:
        _changed_without_a_checkpoint(trial, home)
        return
    done = [_damage(trial, home) for _ in range(trial.rng.randrange(1, 4))]
    _catch_up(trial.folder)
    difference = tree_difference(trial.shared.wanted, tree(home))
    if difference:
        report = verify(located(trial.folder))
        trial.check(report.damaged, f"{done}: verify finds nothing, but {difference}")
    trial.counts["mended by itself" if not difference else "told by verify"] += 1
    _rebuild(trial.folder)
    _must_be_whole(trial, f"{done}, rebuilt", home)


def _changed_without_a_checkpoint(trial: Trial, home: Path) -> None:
    """The checkpoint is lost, and what the folder shows is not so any more: nothing of it may stay."""
    with experiment(trial.folder, read_only=True) as reader:
        ids = [record["id"] for record in reader.file().list() if trial.rng.random() < 0.5]
    victim = trial.shared.zygote.start("victims_special:delete_and_die", trial.folder, ids=ids)
    status = victim.wait()
    trial.check(status == 0, f"the victim ended with {status}: {victim.told()}")
    (home / ".journal" / "checkpoint").unlink()
    _catch_up(trial.folder)
    found = tree(home)
    _rebuild(trial.folder)
    difference = tree_difference(found, tree(home))
    trial.fail(*(f"deleted while the checkpoint was lost: {text}" for text in difference))
    trial.counts["deleted without a checkpoint"] += 1


# A checkpoint of the template is at most that long.
CHECKPOINT_BYTES: Final = 40_960


def _crafted(rng: random.Random, content: bytes, index: int) -> bytes:
    """A checkpoint that is not right: any byte changed, cut anywhere, another version, a wrong position."""
    from zlib import crc32

    quotient, rest = divmod(index, 4)
    if rest < 3:
        place = (3 * quotient + rest) % len(content)
        return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    kind = quotient % 5
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        return rng.randbytes(rng.randrange(200))
    body = msgpack.unpackb(content[12:], strict_map_key=False)
    if kind == 2:
        body[rng.choice(("fold_version", "layout_version"))] = rng.choice((0, 2, 99, -1, "1", None))
    else:
        body["order_position"] = rng.choice((0, 1, 10**9))
        body["order_identity"] = rng.choice((body["order_identity"], "00000000"))
    packed: bytes = msgpack.packb(body)
    return content[:8] + crc32(packed).to_bytes(4, "little") + packed


def strange_checkpoint(trial: Trial) -> None:
    """P3. A checkpoint that is damaged, of another version or moment, is noticed; the folder comes out right."""
    home = _copy(trial)
    _catch_up(trial.folder)
    path = home / ".journal" / "checkpoint"
    content = path.read_bytes()
    assert len(content) <= CHECKPOINT_BYTES, f"a full run does not change every one of its {len(content)} bytes"
    if trial.index % 4 == 3 and trial.index // 4 % 5 == 4:
        _not_of_this_moment(trial, home, path)
        return
    path.write_bytes(_crafted(trial.rng, content, trial.index))
    if trial.rng.random() < 0.5:
        shutil.rmtree(home / "metrics")
    for _ in range(2):
        _catch_up(trial.folder)
    _must_be_whole(trial, "after a strange checkpoint", home)
    # What was folded before shows in what is written now.
    with experiment(trial.folder) as target:
        caller = Caller(target, Reporter(-1, worker=9), trial.rng, sources=sources_of(trial.folder))
        for call in caller.calls:
            call()
        target.update(description="and on")
    trial.fail(*check_folder(home, disk.read_journal(home / ".journal")))
    found = tree(home)
    _rebuild(trial.folder)
    trial.fail(*(f"going on from it: {text}" for text in tree_difference(found, tree(home))))


def _not_of_this_moment(trial: Trial, home: Path, path: Path) -> None:
    """The checkpoint is of another experiment, of a younger journal, or of an older one that was restored since."""
    kind = trial.index // 20 % 3
    if kind == 0:
        with experiment(trial.folder, "another") as other:
            other.log("another")
            other.metric("m0").append(value=1)
        shutil.copy(journal_of(trial.folder, "another") / "checkpoint", path)
        _catch_up(trial.folder)
        _must_be_whole(trial, "with another's checkpoint", home)
        return
    if kind == 1:
        old = path.read_bytes()
        with experiment(trial.folder) as target:
            for number in range(20):
                target.log(f"later {number}")
                target.metric("m0").append(value=number)
        path.write_bytes(old)
    else:
        segment = trial.rng.choice(sorted((home / ".journal" / "segments").glob("*.seg")))
        os.truncate(segment, trial.rng.randrange(segment.stat().st_size))
    _catch_up(trial.folder)
    found = tree(home)
    _rebuild(trial.folder)
    what = ("", "an older checkpoint", "a checkpoint ahead of the journal")[kind]
    trial.fail(*(f"{what}: {text}" for text in tree_difference(found, tree(home))))


_FAULTS: Final = (
    ("pwrite", "ENOSPC", ".jsonl"),
    ("pwrite", "EIO", ".jsonl"),
    ("pwrite", "EDQUOT", ".jsonl"),
    ("create", "EROFS", ".jsonl"),
    ("create", "EACCES", "metadata.json"),
    ("write", "ENOSPC", ".json"),
    ("write", "EIO", "checkpoint"),
    ("write", "ENOSPC", "order"),
    ("rename", "EIO", ".json"),
    ("rename", "EIO", "checkpoint"),
    ("mkdir", "ENOSPC", "/metrics/"),
    ("link", "EMLINK", "/files/"),
    ("rename", "EACCES", "/files/"),
    ("open", "EMFILE", "order"),
    ("create", "ENFILE", "turn.lock"),
)


def disk_fails_while_projecting(trial: Trial) -> None:
    """P5. The folder cannot be written: the writer does not notice, no document is half, later it is made right."""
    op, error, match = _FAULTS[trial.index % len(_FAULTS)]
    store = trial.folder / "store"
    nth = trial.rng.randrange(1, 10)
    count = trial.rng.choice((1, 3, 0))
    rule = shim.rule(op, match=match, nth=nth, count=count, errno=getattr(errno, error))
    with ear() as listener:
        victim = trial.shared.zygote.start(
            "victims_disk:faulty_folder",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            count=120,
            rule=shim.program(store, rule),
        )
        listener.started()
        listener.listen(60)
        status = victim.wait()
        trial.check(status == 0, f"the victim ended with {status}: {victim.told()}")
        ledger = listener.finish()
        trial.counts[f"{op} {match} {error}"] += ledger.last("hits") > 0
        trial.check(ledger.last("slowest-us") < 1_000_000, f"a call took {ledger.last('slowest-us')} µs")
        # What cannot be opened cannot be read; that a disk is full or read-only does not matter to a reader.
        trial.check(
            op == "open" or "read raised" not in ledger.values, f"a read raised {ledger.values.get('read raised')}"
        )
        _look_at(trial, store / PROJECT / NAME)
        from .recovery import recovered

        recovered(trial, ledger, rebuild=True)


def several_projectors(trial: Trial) -> None:
    """P7. 2 to 8 processes project at once: the same bytes as one alone makes."""
    home = _copy(trial)
    zygote_of: Any = trial.shared.zygote
    victims = [
        zygote_of.start(
            "victims:project", trial.folder, rounds=trial.rng.randrange(1, 4), slices=trial.rng.choice((0, 20))
        )
        for _ in range(trial.rng.randrange(2, 9))
    ]
    for victim in victims:
        status = victim.wait()
        trial.check(status == 0, f"a projector ended with {status}: {victim.told()}")
    trial.counts["projectors"] += len(victims)
    _must_be_whole(trial, "by several", home)
    _catch_up(trial.folder)
    _must_be_whole(trial, "after them", home)


ROWS = (
    Row("P1", "projectors killed anywhere", 3_000, 50, killed_while_projecting, plain),
    Row("P2", "derived files edited", 2_000, 30, edited_folder, plain),
    Row("P3", "strange checkpoints", CHECKPOINT_BYTES * 4 // 3, 60, strange_checkpoint, plain),
    Row("P5", "the disk fails while projecting", 2_000, 30, disk_fails_while_projecting, with_shim),
    Row("P7", "several projectors", 300, 8, several_projectors, plain),
)
