"""Rows D8 to D11, D15, D16 and D18: what the uploader reads: late, half, stale, huge, copied, removed, changed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Final

from tests.crash import oracle_reader as disk
from tests.faults.harness import Row, Trial
from tests.faults.zygote import Victim

from .asking import Client
from .judge import check_bytes, judge
from .pens import Place, WriterFixture
from .servers import until
from .verdict import cursor_is_behind, has_all, judged
from .world import DRAINED, Site, World, Writing, site, world

WITH_WATCHING_S: Final = 2.0
LONG: Final = "ML_DASH_TEST_LONG"


def ended(trial: Trial, victim: Victim, number: int = 15) -> None:
    """The uploader ends when it is told to, well."""
    victim.kill(number)
    status = victim.wait(15)
    trial.check(status == 0, f"`run` ended with {status}: {victim.told()[-800:]}")


# -- D8 --------------------------------------------------------------------------------------------------------------


def no_watching(trial: Trial) -> None:
    """D8. With inotify broken in any way the scan finds what is new; with it, within two seconds."""
    shared: World = trial.shared
    how = ("", "silent", "ENOSPC", "EMFILE")[trial.index % 4]
    bound = WITH_WATCHING_S if not how else 8.0
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        first = here.pen()
        victim = here.syncd("run", url, watch=how, impatient=SOON)
        until(lambda: has_all(shared.server.port, here), 20, what="the first events")
        begun = time.monotonic()
        second = here.pen()  # a journal that was not there
        for pen in (first, second):
            pen.log("after a while")
        until(lambda: has_all(shared.server.port, here), 20, what=f"new events, watching broken: {how or 'no'}")
        took = time.monotonic() - begun
        trial.check(took < bound, f"new events took {took:.1f} s, watching broken: {how or 'no'}")
        trial.counts[f"watching broken: {how or 'no'}"] += 1
        ended(trial, victim)
        judged(trial, shared.server.port, here)


SOON: Final[dict[str, Any]] = {"ml_dash_syncd.watch:FULL_S": 2.0}
"""Constants that shorten the scans that would take up to a minute."""


# -- D9, D10 ---------------------------------------------------------------------------------------------------------


def reads_of_a_network_disk(trial: Trial) -> None:
    """D9. Zeros at the tail, holes, stale sizes, ESTALE, EIO: wait and read again; a live tail is never damage."""
    shared: World = trial.shared
    kinds = (
        f"zeros:{trial.rng.randrange(1, 400)}:{trial.rng.randrange(1, 12)}",
        f"hole:{trial.rng.randrange(1, 100)}:{trial.rng.randrange(1, 12)}",
        f"stale:{trial.rng.randrange(1, 400)}:{trial.rng.randrange(1, 12)}",
        f"error:{errno.ESTALE}:{trial.rng.randrange(1, 8)}",
        f"error:{errno.EIO}:{trial.rng.randrange(1, 8)}",
    )
    program = kinds[trial.index % len(kinds)]
    trial.counts[program.split(":")[0]] += 1
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        for _ in range(trial.rng.randrange(1, 20)):
            pen.any(trial.rng)
        victim = here.syncd("run", url, zygote=shared.shimmed, reads=program, impatient=SOON)
        with Writing(pen, trial.rng, pause_s=0.004):
            trial.check(not victim.exited(0.15), f"`run` ended by itself: {victim.told()[-600:]}")
        until(lambda: has_all(shared.server.port, here), 30, what=f"all events, with reads that answer {program}")
        ended(trial, victim)
        cursor_is_behind(trial, shared.server.port, here)
        pen.close()
        here.drain(url)
        with Client(shared.server.port) as client:
            _no_damage_told(trial, client, here.places[0])
        judged(trial, shared.server.port, here)


def _no_damage_told(trial: Trial, client: Client, place: Place) -> None:
    for segment in disk.read_journal(place.journal).segments:
        if segment.header is not None:
            state = client.journal(place.identity.hex())
            assert state is not None
            told = state["segments"].get(segment.header.segment.hex(), {}).get("damaged", [])
            trial.check(not told, f"the server was told of damage that there is not: {told}")


def half_frames(trial: Trial) -> None:
    """D10. The uploader reads while frames are written in pieces, with pauses in between."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        victim = here.syncd("run", url, impatient=SOON)
        begun = time.monotonic()
        while time.monotonic() - begun < 0.4:
            frame = _frame_of(pen, trial)
            cut = trial.rng.randrange(len(frame))
            pen.raw(frame[:cut])
            trial.check(not victim.exited(trial.rng.random() * 0.03), f"`run` ended: {victim.told()[-600:]}")
            with Client(shared.server.port) as client:
                state = client.journal(pen.place.identity.hex())
            there = state["segments"].get(pen.segment.hex(), {"length": 0})["length"] if state else 0
            whole = pen.size - cut
            trial.check(there <= whole, f"{there} bytes are on the server, {whole} of them are whole frames")
            pen.raw(frame[cut:])
            trial.counts["frames in pieces"] += 1
        until(lambda: has_all(shared.server.port, here), 20, what="all events")
        ended(trial, victim)
        judged(trial, shared.server.port, here)


def _frame_of(pen: WriterFixture, trial: Trial) -> bytes:
    body = ["info", f"{pen.seq} " + "y" * trial.rng.choice((3, 300, 9000)), None]
    time_ns = pen.tick()
    pen.issued[pen.writer.hex(), pen.seq] = (disk.LOG, time_ns, body)
    frame = pen.encoded(disk.LOG, body, time_ns=time_ns)
    pen.seq += 1
    return frame


# -- D11 -------------------------------------------------------------------------------------------------------------


def backlog(trial: Trial) -> None:
    """D11. A backlog is shipped in flat memory, and a live experiment does not wait behind it."""
    shared: World = trial.shared
    events, segments, sparse = (1_000_000, 2_000, 2 << 30) if LONG in os.environ else (8_000, 60, 24 << 20)
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        old = here.pen()
        for number in range(events):
            old.point("m", value=float(number))
            if number % (events // segments) == 0:
                old.roll()
        _sparse_file(old, sparse)
        old.close()
        victim = here.syncd("run", url)
        live = here.pen()
        live.log("alive")
        begun = time.monotonic()
        until(lambda: _arrived(shared.server.port, live), 30, what="a live event beside a backlog")
        trial.check(time.monotonic() - begun < 6, f"a live event took {time.monotonic() - begun:.1f} s")
        until(lambda: has_all(shared.server.port, here), 60 + events / 2000, step_s=0.1, what="the backlog")
        peak = _peak_bytes(victim.pid)
        trial.check(peak < 256 << 20, f"the uploader's memory reached {peak >> 20} MB")
        trial.counts["peak MB (sum over trials)"] += peak >> 20
        ended(trial, victim)
        live.close()
        here.drain(url)
        judged(trial, shared.server.port, here, contents=LONG not in os.environ)


def _sparse_file(pen: WriterFixture, size: int) -> None:
    import hashlib

    sha = hashlib.sha256()
    for _ in range(size >> 20):
        sha.update(bytes(1 << 20))
    with pen.blob(sha.hexdigest()).open("wb") as file:
        file.truncate(size)
    body = {
        "path": "/", "prefix": "", "filename": "sparse.bin", "sizeBytes": size, "checksum": sha.hexdigest(),
        "contentType": "application/octet-stream",
    }  # fmt: skip
    pen.write(disk.FILE, body)


def _arrived(port: int, pen: WriterFixture) -> bool:
    with Client(port) as client:
        state = client.journal(pen.place.identity.hex())
        return state is not None and state["segments"].get(pen.segment.hex(), {"length": 0})["length"] >= pen.size


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


# -- D15, D16, D18 ---------------------------------------------------------------------------------------------------


def copied_journal(trial: Trial) -> None:
    """D15. A live journal is copied to another machine; both are synced, in any order; nothing is rolled back."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here, site(trial, "there") as there:
        pen = here.pen()
        with Writing(pen, trial.rng, pause_s=0.001):
            if trial.rng.random() < 0.5:
                here.once(url)
            _copy(here.store, there.store)
            if trial.rng.random() < 0.5:
                there.once(url)
        here.drain(url)
        # The copy is older now, or it was torn in the middle of a frame.
        status = there.once(url)
        trial.check(status != 70, f"`once` crashed on a copy: {there.last_words[-600:]}")
        _restored_from_backup(trial, here, there, url)
        pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here)


def _restored_from_backup(trial: Trial, here: Site, there: Site, url: str) -> None:
    """The machine's own store goes back to the copy, is synced, and comes again."""
    if trial.rng.random() < 0.5:
        return
    trial.counts["restored from a backup"] += 1
    newer = here.folder / "newer"
    here.store.rename(newer)
    _copy(there.store, here.store)
    status = here.once(url)
    trial.check(status != 70, f"`once` crashed on an older copy: {here.last_words[-600:]}")
    shutil.rmtree(here.store)
    newer.rename(here.store)


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(shutil.Error):  # what goes away while it is copied
        shutil.copytree(source, target)


def removed_journal(trial: Trial) -> None:
    """D16. The user removes a journal while it is synced: no crash, what arrived stays, the others go on."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        gone, other = here.pen(), here.pen()
        for _ in range(trial.rng.randrange(30, 300)):
            gone.any(trial.rng)
        kept = trial.folder / "kept"
        victim = here.syncd("run", url, impatient={"BATCH_BYTES": 1000, **SOON})
        trial.check(not victim.exited(trial.rng.random() * 0.15), f"`run` ended: {victim.told()[-600:]}")
        shutil.copytree(gone.place.home, kept)
        remover = threading.Thread(target=shutil.rmtree, args=(gone.place.home,), name="remover")
        remover.start()
        for _ in range(10):
            other.any(trial.rng)
        remover.join()
        here.places.remove(gone.place)
        here.pens.remove(gone)
        gone.die()
        until(lambda: has_all(shared.server.port, here), 20, what="the other journal's events")
        trial.check(not victim.exited(0), f"`run` ended when a journal was removed: {victim.told()[-600:]}")
        ended(trial, victim)
        with Client(shared.server.port) as client:
            trial.fail(*check_bytes(client, [disk.read_journal(kept / ".journal")], behind_ok=True))
        judged(trial, shared.server.port, here)


def changed_blob(trial: Trial) -> None:
    """D18. A blob is changed, cut, or gone when it is to be sent: told, never stored as good; all else arrives."""
    shared: World = trial.shared
    how = ("changed", "cut", "longer", "gone", "a folder")[trial.index % 5]
    trial.counts[how] += 1
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        content = trial.rng.randbytes(trial.rng.randrange(100, 5000))
        seq = pen.file(b"a good one", "good.bin")
        seq = pen.file(content, "bad.bin")
        pen.log("and more")
        (blob,) = pen.place.blobs.glob(f"*-{seq}")
        original = blob.read_bytes()
        blob.chmod(0o644)
        if how == "changed":
            at = trial.rng.randrange(len(content))
            blob.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        elif how == "cut":
            blob.write_bytes(content[: trial.rng.randrange(len(content))])
        elif how == "longer":
            blob.write_bytes(content + b"x")
        else:
            blob.unlink()
            if how == "a folder":
                blob.mkdir()
        pen.close()
        status = here.once(url)
        trial.check(status not in (DRAINED, 70), f"`once` ended with {status} although a blob is {how}")
        with Client(shared.server.port) as client:
            state = client.journal(pen.place.identity.hex())
            trial.check(state is not None, "nothing arrived")
            if state is not None:
                blobs = state["blobs"]
                trial.check(not blobs.get(blob.name, {}).get("complete"), f"a blob that is {how} counts as whole")
                files = {r["filename"]: r["id"] for r in client.files(state["experiment"])}
                if "bad.bin" in files:
                    answer = client.download(state["experiment"], files["bad.bin"])
                    trial.check(answer.status != 200, f"a file that is {how} can be downloaded")
                good = client.download(state["experiment"], files["good.bin"])
                trial.check(good.body == b"a good one", f"the good file answers {good.status}")
        # It is put right, and goes.
        if blob.is_dir():
            blob.rmdir()
        blob.write_bytes(original)
        here.drain(url)
        trial.fail(*judge(shared.server.port, here.places, here.pens))


ROWS = (
    Row("D8", "inotify is silent, or has no instance or watch left", 200, 4, no_watching, world),
    Row("D9", "reads as on a network disk: zeros, holes, stale sizes, ESTALE, EIO", 5_000, 10, reads_of_a_network_disk,
        world),
    Row("D10", "frames that are written in pieces", 200, 3, half_frames, world,
        unit="about 20 frames each"),
    Row("D11", "a backlog, in flat memory", 5, 1, backlog, world),
    Row("D15", "a journal is copied while it lives; a backup is put back", 300, 4, copied_journal, world),
    Row("D16", "a journal is removed while it is synced", 200, 3, removed_journal, world),
    Row("D18", "a blob is changed or gone before it is sent", 500, 5, changed_blob, world),
)  # fmt: skip
