"""Rows D1 to D3: the uploader killed at random and at each step, and its cursor damaged in every way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.faults.harness import Row, Trial

from . import proxy as px
from .servers import serve
from .verdict import cursor_is_behind, judged
from .world import World, Writing, site, world

KILLS: Final = 10
POINTS: Final = ("sync-read", "sync-send", "sync-acked", "cursor-before", "cursor-renamed")
SMALL_BATCHES: Final = {"BATCH_BYTES": 700}


def killed_in_a_loop(trial: Trial) -> None:
    """D1. Killed again and again while writers write; what the cursor says is never ahead; at the end all is there."""
    shared: World = trial.shared
    with site(trial) as here:
        pens = [here.pen() for _ in range(trial.rng.choice((1, 1, 2)))]
        url = f"http://127.0.0.1:{shared.server.port}"
        with Writing(pens[0], trial.rng, pause_s=trial.rng.choice((0.001, 0.01))):
            for _ in range(KILLS):
                victim = here.syncd("run", url, impatient=SMALL_BATCHES if trial.rng.random() < 0.5 else None)
                trial.check(
                    not victim.exited(trial.rng.choice((0.02, 0.1)) * trial.rng.random()),
                    f"`run` ended by itself: {victim.told()[-600:]}",
                )
                victim.kill()
                victim.wait()
                trial.counts["kills"] += 1
                cursor_is_behind(trial, shared.server.port, here)
        for pen in pens:
            pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here, folder=trial.index % 8 == 0)


def killed_at_a_step(trial: Trial) -> None:
    """D2. Killed at the n-th passing of a named step; the next one goes on."""
    shared: World = trial.shared
    point = POINTS[trial.index % len(POINTS)]
    with site(trial) as here:
        pen = here.pen()
        for _ in range(trial.rng.randrange(5, 60)):
            pen.any(trial.rng)
        pen.close()
        url = f"http://127.0.0.1:{shared.server.port}"
        nth = trial.rng.randrange(1, 5)
        victim = here.syncd("once", url, impatient=SMALL_BATCHES, env={"ML_DASH_FAIL": f"{point}:{nth}:kill"})
        status = victim.wait()
        trial.check(status in (0, -9), f"`once` ended with {status}: {victim.told()[-600:]}")
        trial.counts[f"{'hit' if status else 'missed'} {point}"] += 1
        cursor_is_behind(trial, shared.server.port, here)
        here.drain(url)
        judged(trial, shared.server.port, here, folder=trial.index % 8 == 0)


# -- D3 --------------------------------------------------------------------------------------------------------------


def _flip(path: Path, trial: Trial) -> None:
    data = bytearray(path.read_bytes())
    data[trial.index // 3 % len(data)] ^= 1 << trial.rng.randrange(8)
    path.write_bytes(data)


def _other_byte(path: Path, trial: Trial) -> None:
    """A digit for a digit where there is one: what no parser finds wrong."""
    data = bytearray(path.read_bytes())
    at = trial.index // 3 % len(data)
    digits = b"0123456789" if data[at] in b"0123456789" else bytes(range(32, 127))
    data[at] = trial.rng.choice([byte for byte in digits if byte != data[at]])
    path.write_bytes(data)


def _cut(path: Path, trial: Trial) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: trial.index // 3 % len(data)])


def _from_the_future(path: Path, trial: Trial) -> None:
    """Everything is acknowledged, says the cursor; also what was not even written when it was saved."""
    cursor = json.loads(path.read_bytes())
    cursor["segments"] = {name: end + trial.rng.choice((1, 100, 10**6)) for name, end in cursor["segments"].items()}
    path.write_text(json.dumps(cursor))


def _from_another(path: Path, trial: Trial) -> None:
    """The cursor of another journal, of the same remote."""
    others = [other for other in path.parent.glob("*.json") if other != path]
    path.write_bytes(others[0].read_bytes() if others else b"{}")


def _gone(path: Path, _: Trial) -> None:
    path.unlink()


def _empty(path: Path, _: Trial) -> None:
    path.write_bytes(b"")


def _garbage(path: Path, trial: Trial) -> None:
    path.write_bytes(trial.rng.choice((b"null", b"[]", b"{}", b"\xff\xfe", b'{"version": 99}', b"[" * 100_000)))


def _folder(path: Path, _: Trial) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: Final[tuple[Callable[[Path, Trial], None], ...]] = (
    _from_the_future, _from_another, _gone, _empty, _garbage, _folder,
)  # fmt: skip
BYTE_DAMAGES: Final[tuple[Callable[[Path, Trial], None], ...]] = (_flip, _other_byte, _cut)


def damaged_cursor(trial: Trial) -> None:
    """D3. Whatever the cursor's file holds, all arrives, and no more than bandwidth is lost."""
    shared: World = trial.shared
    if trial.index % 20 == 8:
        trial.counts["server from a backup"] += 1
        _server_goes_back(trial)
        return
    damage = DAMAGES[trial.index // 10 % len(DAMAGES)] if trial.index % 10 == 9 else BYTE_DAMAGES[trial.index % 3]
    with site(trial) as here:
        pens = [here.pen(), here.pen()]
        url = f"http://127.0.0.1:{shared.server.port}"
        for pen in pens:
            for _ in range(trial.rng.randrange(3, 20)):
                pen.any(trial.rng)
        here.drain(url)
        cursors = here.cursors()
        if trial.check(len(cursors) >= len(pens), f"{len(cursors)} cursors after a drain"):
            # What came since is what a wrong cursor would skip.
            for pen in pens:
                for _ in range(trial.rng.randrange(1, 20)):
                    pen.any(trial.rng)
            damage(trial.rng.choice(cursors), trial)
        trial.counts[damage.__name__.strip("_")] += 1
        for pen in pens:
            pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here)


def _server_goes_back(trial: Trial) -> None:
    """The cursor is right for a server that has since been restored from an older backup."""
    shared: World = trial.shared
    folder = trial.folder / "server"
    server = serve(shared.zygote, folder).wait_ready()
    with site(trial) as here, px.proxy(server.address) as link:
        pen = here.pen()

        def more() -> None:
            for _ in range(trial.rng.randrange(1, 20)):
                pen.any(trial.rng)
            here.drain(link.url)

        try:
            more()
            server.stop()
            shutil.copytree(folder / "data", trial.folder / "backup")
            for restore in (False, True):
                if restore:
                    server.stop()
                    shutil.rmtree(folder / "data")
                    (trial.folder / "backup").rename(folder / "data")
                server = serve(shared.zygote, folder).wait_ready()
                link.upstream = server.address
                more()
            judged(trial, server.port, here)
        finally:
            server.kill()


ROWS = (
    Row("D1", "the uploader is killed in a loop beside live writers", 500, 6, killed_in_a_loop, world,
        unit=f"{KILLS} kills each"),
    Row("D2", "the uploader is killed at each step", 5 * 200, 20, killed_at_a_step, world),
    Row("D3", "a cursor is damaged, deleted, from elsewhere, from the future", 3000, 24, damaged_cursor, world),
)  # fmt: skip
