"""Rows B1 to B14: two servers side by side on MongoDB and S3, killed, stopped, cut off, gone back in time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

import psutil

from tests.crash import oracle_reader as disk
from tests.crash.oracle import file_id
from tests.faults import shim
from tests.faults.harness import Row, Trial

from . import database_link as dl
from . import proxy as px
from .deployment import ARCHIVES_SOON, Deployment, deployment, pause
from .judge import truth
from .load import Loader, Poster, Promises, Shipper, enduring
from .pens import WriterFixture
from .proxy import Fault, Request
from .rows_reading import SOON
from .servers import LEASE_S, until
from .world import DRAINED, Site, site, world

PATIENCE_S: Final = 60.0
_KILL: Final = "ML_DASH_FAIL"


class Load:
    """Clients that send through the balancer while something happens to what is behind it."""

    def __init__(self, trial: Trial, here: Site, *, shippers: int = 2) -> None:
        self.trial, self.here = trial, here
        self.promises = Promises()
        self.shippers = [Shipper(here.pen(), self.promises, self._rng(), alone=False) for _ in range(shippers)]
        # Two writers of one experiment, whose requests meet at different servers.
        place = self.shippers[0].pen.place
        self.beside: WriterFixture = here.pen(place)
        self.poster = Poster(here.project, "by-rest", self.promises, self._rng())

    def _rng(self) -> random.Random:
        return random.Random(self.trial.rng.random())

    @contextlib.contextmanager
    def running(self, servers: Deployment) -> Iterator[None]:
        """They send to the end of the block."""
        loaders: list[Loader] = [*self.shippers, self.poster]
        with enduring(servers.port, loaders):
            yield

    def write_beside(self) -> None:
        """Some events of the other writer, which the uploader brings."""
        for _ in range(self.trial.rng.randrange(1, 8)):
            self.beside.any(self.trial.rng)

    def settle(self, servers: Deployment) -> None:
        """Everything is brought; both servers must show it, and what was promised before."""
        trial = self.trial
        for pen in self.here.pens:
            pen.close()
        # Several times: a lease that a killed or stopped server has left runs out first.
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.here.once(servers.url)) != DRAINED and time.monotonic() < deadline:
            pause(0.1)
        trial.check(status == DRAINED, f"`once` ended with {status}: {self.here.last_words[-600:]}")
        for server in servers.servers:
            trial.fail(*self.promises.check(server.port))
        trial.fail(*self.promises.unexpected[:3])
        trial.counts["promises"] += self.promises.count
        servers.judged(trial, self.here)


# -- B1, B3: the database and the bucket in trouble ------------------------------------------------------------------

_DATABASE: Final = (dl.LOST, dl.UNANSWERED, dl.CUT, dl.STALL, dl.SLOW)


def database_in_trouble(trial: Trial) -> None:
    """B1. The database is away, cut, slow, silent, killed, or does what it is asked and its answer is lost."""
    rng = trial.rng
    with deployment(trial, links=True) as servers, site(trial) as here:
        link, mongo = servers.backend.mongo_link, servers.backend.services.mongo
        assert link is not None
        load = Load(trial, here)
        with load.running(servers):
            for _ in range(4):
                pause(rng.uniform(0.05, 0.3))
                how = rng.choice(("killed", "silent", "cut off", *_DATABASE, *_DATABASE))
                trial.counts[how] += 1
                if how == "killed":
                    mongo.restart()
                elif how == "silent":
                    mongo.pause()
                    pause(rng.uniform(0.1, 1.0))
                    mongo.resume()
                elif how == "cut off":
                    link.cut()
                else:
                    link.plan = _sometimes(rng, how, rng.choice((0.1, 0.4, 1.0)))
                    pause(rng.uniform(0.1, 0.8))
                    link.plan = dl.let_pass
                load.write_beside()
        load.settle(servers)


def _sometimes(rng: random.Random, how: str, share: float) -> dl.Plan:
    own = random.Random(rng.random())
    return lambda _: how if own.random() < share else dl.PASS


_BUCKET: Final = (
    Fault(px.ANSWER, answer=px.answer(500, b"<Error><Code>InternalError</Code></Error>", kind="application/xml")),
    Fault(px.ANSWER, answer=px.answer(503, b"<Error><Code>SlowDown</Code></Error>", kind="application/xml")),
    Fault(px.CUT_RESPONSE, at=0),
    Fault(px.CUT_RESPONSE, at=17),
    Fault(px.CUT_RESPONSE, at=400),
    Fault(px.CUT_REQUEST, at=60),
    Fault(px.CUT_REQUEST, at=700),
    Fault(px.DELAY, seconds=0.2),
    Fault(px.HALF_OPEN, at=30),
    Fault(px.STALL),
)


def bucket_in_trouble(trial: Trial) -> None:
    """B3. The bucket refuses for now, cuts requests and answers, or stores an object and its answer is lost."""
    rng = trial.rng
    with deployment(trial, links=True, impatient=ARCHIVES_SOON) as servers, site(trial) as here:
        link = servers.backend.s3_link
        assert link is not None
        load = Load(trial, here)
        own = random.Random(rng.random())

        def plan(_: Request) -> Fault:
            return own.choice(_BUCKET) if own.random() < 0.3 else Fault()

        with load.running(servers):
            for _ in range(3):
                link.plan = plan
                load.write_beside()
                here.once(servers.url)
                pause(rng.uniform(0.2, 0.8))
                link.plan = px.let_pass
                pause(rng.uniform(0.05, 0.2))
        trial.counts["faults"] += link.seen.requests - link.seen.kinds[px.PASS]
        load.settle(servers)
        _only_garbage(trial, servers)


def _only_garbage(trial: Trial, servers: Deployment) -> None:
    """Each row of a blob names an object of its size; an object that no row names is only garbage."""
    objects = servers.backend.objects()
    with servers.backend.collections() as database:
        for row in database.blobs.find():
            found = [content for key, content in objects.items() if key.endswith(row["key"].rpartition("/")[2])]
            whole = any(len(content) == row["size"] for content in found)
            trial.check(whole, f"the row of {row['name']} names an object that is not there")
    trial.counts["objects"] += len(objects)


# -- B5, B11: killed at each step --------------------------------------------------------------------------------------

_OBJECT_STEPS: Final = (
    "blob-staged", "blob-stored", "blob-noted", "blob-row-dropped", "upload-piece", "upload-part", "upload-placed",
    "upload-verified", "upload-last", "upload-dropped",
)  # fmt: skip
_COMMIT_STEPS: Final = (
    "commit-lease", "commit-pages", "commit-head", "commit-listed", "journal-claimed", "segment-claimed",
)  # fmt: skip
_ARCHIVE_STEPS: Final = ("archive-stored", "archive-before-commit", "archive-after-commit")


def _killed_at(trial: Trial, steps: tuple[str, ...]) -> None:
    """One of two servers dies at a step, under load; the other one goes on, and a new one comes."""
    rng = trial.rng
    step = steps[trial.index % len(steps)]
    victim = rng.randrange(2)
    fail = {"env": {_KILL: f"{step}:{rng.randrange(1, 3 if 'claimed' in step else 6)}:kill"}}
    options = [fail if number == victim else {} for number in range(2)]
    with deployment(trial, *options, impatient=ARCHIVES_SOON) as servers, site(trial) as here:
        load = Load(trial, here)
        with load.running(servers):
            deadline = time.monotonic() + 3
            while not (died := servers.servers[victim].process.exited(0.1)) and time.monotonic() < deadline:
                load.write_beside()
                here.once(servers.url)
            # The other one is alone for a while, and finishes or ignores what the dead one has begun.
            pause(rng.uniform(0, 2 * LEASE_S))
        trial.counts[f"{'killed at' if died else 'missed'} {step}"] += 1
        if rng.random() < 0.5:
            servers.restart(victim)
            load.settle(servers)
        else:
            alone = servers.servers.pop(victim)
            alone.kill()
            load.settle(servers)
        _only_garbage(trial, servers)


def killed_between_object_and_row(trial: Trial) -> None:
    """B5. A server dies between the bucket and the database: what is left is an object that nobody names."""
    _killed_at(trial, _OBJECT_STEPS)


def killed_at_a_step(trial: Trial) -> None:
    """B11. A server dies at each step of a commit and of archiving: the other one finishes or ignores it."""
    _killed_at(trial, (*_COMMIT_STEPS, *_ARCHIVE_STEPS))


# -- B8: older states --------------------------------------------------------------------------------------------------


def restored(trial: Trial) -> None:
    """B8. The database, the bucket, or both are restored to an older state: uploaders bring what is missing."""
    rng = trial.rng
    which = ("database", "bucket", "both")[trial.index % 3]
    trial.counts[which] += 1
    with deployment(trial) as servers, site(trial) as here:
        pens = [here.pen(), here.pen()]

        def more() -> None:
            for pen in pens:
                for _ in range(rng.randrange(2, 25)):
                    pen.any(rng)
            here.drain(servers.url)

        more()
        servers.stop()
        with servers.backend.collections() as database:
            kept = {name: list(database[name].find()) for name in database.list_collection_names()}
        objects = servers.backend.objects()
        servers.start()
        more()
        servers.stop()
        if which != "bucket":
            with servers.backend.collections() as database:
                for name in database.list_collection_names():
                    database[name].delete_many({})
                    if kept.get(name):
                        database[name].insert_many(kept[name])
        if which != "database":
            for key in servers.backend.objects().keys() - objects.keys():
                servers.backend.services.client.delete_object(Bucket=servers.backend.bucket, Key=key)
            for key, content in objects.items():
                servers.backend.services.client.put_object(Bucket=servers.backend.bucket, Key=key, Body=content)
        servers.start()
        # The database alone from before: rows name contents that were released since, and are deleted again.
        more()
        for pen in pens:
            pen.close()
        here.drain(servers.url)
        servers.judged(trial, here)


# -- B9: indexes -------------------------------------------------------------------------------------------------------


def index_missing(trial: Trial) -> None:
    """B9. A missing index is made at the start; where it cannot be made, the server refuses to start and says so."""
    how = ("dropped", "not allowed", "not unique")[trial.index % 3]
    trial.counts[how] += 1
    with deployment(trial, links=True) as servers, site(trial) as here:
        pen = here.pen()
        for _ in range(5):
            pen.any(trial.rng)
        here.drain(servers.url)
        servers.stop()
        with servers.backend.collections() as database:
            names = [name for name in database.list_collection_names() if len(database[name].index_information()) > 1]
            name = "tokens" if how == "not unique" else trial.rng.choice(sorted(names))
            for index in database[name].index_information():
                if index != "_id_":
                    database[name].drop_index(index)
            if how == "not unique":
                rows = [{"_id": str(number), "digest": "d", "user": "u"} for number in range(2)]
                database[name].insert_many(rows)
        link = servers.backend.mongo_link
        assert link is not None
        if how == "not allowed":
            link.plan = lambda command: dl.REFUSED if command == "createIndexes" else dl.PASS
        if how != "dropped":
            try:
                servers.start()
                trial.fail(f"a server starts without the index of {name}")
            except RuntimeError as error:
                said = str(error)
                trial.check("ended with 1" in said, f"a server without an index ends so: {said[-300:]}")
                trial.check("lacks the index" in said and f"of {name}" in said, f"it does not say why: {said[-300:]}")
            for server in servers.servers:
                server.kill()
            link.plan = dl.let_pass
            if how == "not unique":
                with servers.backend.collections() as database:
                    database[name].delete_many({})
        servers.start()
        with servers.backend.collections() as database:
            trial.check(len(database[name].index_information()) > 1, f"the index of {name} was not made again")
        pen.any(trial.rng)
        pen.close()
        here.drain(servers.url)
        servers.judged(trial, here)


# -- B10, B12: a stopped server, other clocks --------------------------------------------------------------------------


def _stop(pid: int) -> bool:
    """Stop a process, and wait until it is; False if it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        still = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        until(lambda: psutil.Process(pid).status() in still, 10, what="a stopped process")
        return True
    return False


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


_HALTS: Final = (
    "commit-lease",
    "commit-pages",
    "commit-head",
    "blob-stored",
    "archive-stored",
    "archive-before-commit",
)


def holder_is_stopped(trial: Trial) -> None:
    """B10. A server is stopped with a lease, another takes over, the first goes on: nothing it writes then is seen."""
    rng = trial.rng
    step = _HALTS[trial.index % len(_HALTS)]
    halts = {"halt": f"{step}:{rng.randrange(1, 8)}"}
    with deployment(trial, halts, impatient=ARCHIVES_SOON) as servers, site(trial) as here:
        _with_stops(trial, servers, here, step)
        _nothing_released_stays(trial, servers, here)


def _nothing_released_stays(trial: Trial, servers: Deployment, here: Site) -> None:
    """Of whoever stores a content and whoever releases its file, one sees the other: no row stays without a crash."""
    journals = [disk.read_journal(place.journal) for place in here.places]
    # Those that two writers share stand twice, and are the same.
    live = {number for journal in journals for _, number in truth(journal.events).files.values()}
    with servers.backend.collections() as database:
        for row in database.blobs.find({"experiment": {"$ne": ""}}):
            _, writer, seq = row["name"].split("-")
            trial.check(
                file_id(writer, int(seq)) in live, f"the row of {row['name']} is there, and its file is released"
            )


def _with_stops(trial: Trial, servers: Deployment, here: Site, step: str = "") -> None:
    rng = trial.rng
    load = Load(trial, here)
    first, second = (server.process.pid for server in servers.servers)
    with load.running(servers):
        if step:
            deadline = time.monotonic() + 3
            while not (halted := _is_stopped(first)) and time.monotonic() < deadline:
                load.write_beside()
                pause(0.02)
            trial.counts[f"{'stopped at' if halted else 'missed'} {step}"] += 1
        for _ in range(3):
            victim = first if _is_stopped(first) else rng.choice((first, second))
            _stop(victim)
            alone = [s.address for s in servers.servers if s.process.pid != victim]
            assert servers.balancer is not None
            everybody, servers.balancer.upstreams = servers.balancer.upstreams, alone
            servers.balancer.cut()
            load.write_beside()
            pause(rng.choice((0.1, 1.2, 2.5)) * LEASE_S + rng.uniform(0, 0.3))
            servers.balancer.upstreams = everybody
            os.kill(victim, signal.SIGCONT)
            trial.counts["stops"] += 1
            pause(rng.uniform(0.05, 0.3))
        for server in servers.servers:
            server.halts_no_more()
    load.settle(servers)


def other_clocks(trial: Trial) -> None:
    """B12. The clocks of two servers are 30 s apart, and one is set again: everything as with one clock."""
    rng = trial.rng
    shifts = rng.sample((-30, -15, 0, 30), 2)
    options = [{"program": shim.program(None, f"clock=shift:{shift}")} for shift in shifts]
    with deployment(trial, *options) as servers, site(trial) as here:
        if trial.index % 2:
            load = Load(trial, here)
            with load.running(servers):
                pause(rng.uniform(0.2, 0.6))
                servers.restart(0, program=shim.program(None, f"clock=shift:{-shifts[0]}"))
                load.write_beside()
                here.once(servers.url)
            load.settle(servers)
        else:
            _with_stops(trial, servers, here)


# -- B14: everything at once -------------------------------------------------------------------------------------------

_POINTS: Final = (*_OBJECT_STEPS, *_COMMIT_STEPS, *_ARCHIVE_STEPS)


def killed_in_turn(trial: Trial) -> None:
    """B14. Under load, servers are killed in turn, stopped, or die at a step, and the links to their stores are bad."""
    rng = trial.rng
    rounds = 40 if os.environ.get("ML_DASH_TEST_LONG") else 8
    with deployment(trial, links=True, impatient=ARCHIVES_SOON) as servers, site(trial) as here:
        mongo, bucket = servers.backend.mongo_link, servers.backend.s3_link
        assert mongo is not None
        assert bucket is not None
        uploader = here.syncd("run", servers.url, impatient=SOON)
        load = Load(trial, here)
        own = random.Random(rng.random())

        def kill() -> None:
            fail = f"{rng.choice(_POINTS)}:{rng.randrange(1, 12)}:kill" if rng.random() < 0.5 else ""
            servers.restart(rng.randrange(2), env={_KILL: fail} if fail else {})

        def stop() -> None:
            pid = rng.choice(servers.servers).process.pid
            if _stop(pid):
                pause(rng.uniform(0, 2 * LEASE_S))
                os.kill(pid, signal.SIGCONT)

        def bad_database() -> None:
            mongo.plan = _sometimes(rng, rng.choice(_DATABASE), 0.1) if mongo.plan is dl.let_pass else dl.let_pass

        def bad_bucket() -> None:
            sometimes: px.Plan = lambda _: own.choice(_BUCKET) if own.random() < 0.1 else Fault()  # noqa: E731
            bucket.plan = sometimes if bucket.plan is px.let_pass else px.let_pass

        actions: tuple[Callable[[], None], ...] = (kill, kill, stop, bad_database, bad_bucket)
        try:
            with load.running(servers):
                for _ in range(rounds):
                    action = rng.choice(actions)
                    # A server has to be able to start: that wants a database.
                    if action is kill:
                        mongo.plan = dl.let_pass
                    action()
                    trial.counts[action.__name__.replace("_", " ")] += 1
                    load.write_beside()
                    pause(rng.uniform(0.05, 0.4))
                mongo.plan, bucket.plan = dl.let_pass, px.let_pass
        finally:
            uploader.kill()
            uploader.wait()
        # New ones, which die at no step.
        for number in range(len(servers.servers)):
            servers.restart(number)
        load.settle(servers)


ROWS = (
    Row("B1", "the database is away, cut, slow, silent, or its answers are lost", 2_000, 2, database_in_trouble, world),
    Row("B3", "the bucket refuses, is cut, or its answers are lost", 2_000, 2, bucket_in_trouble, world),
    Row("B5", "a server is killed between the bucket and the database", 1_000, 2, killed_between_object_and_row, world),
    Row("B8", "database, bucket or both are restored to an older state", 100, 3, restored, world),
    Row("B9", "an index is missing, and cannot be made", 9, 3, index_missing, world),
    Row("B10", "a server with a lease is stopped, and goes on later", 500, 3, holder_is_stopped, world),
    Row("B11", "one of two servers is killed at each step", 9 * 200, 3, killed_at_a_step, world),
    Row("B12", "the clocks of two servers are apart", 200, 2, other_clocks, world),
    Row("B14", "servers, links and uploader in trouble all at once", 100, 1, killed_in_turn, world),
)  # fmt: skip
