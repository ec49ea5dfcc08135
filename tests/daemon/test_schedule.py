"""Who has the next turn, and what waits: with shipments that do what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.errors import ServerRefused, Unauthorised, Unreachable
from ml_dash.journal.segment import SEGMENTS
from ml_dash.sync import login, registrations
from ml_dash.sync.registrations import Registration
from ml_dash.sync.remote import Link
from ml_dash_syncd import backoff, schedule
from ml_dash_syncd.discover import Discovery
from ml_dash_syncd.schedule import Schedule, Task
from ml_dash_syncd.settings import Settings
from ml_dash_syncd.ship import Remaining, StepResult

HERE, THERE = "http://127.0.0.1:9", "http://127.0.0.1:10"
DONE = StepResult(Remaining.NOTHING)
Step = Callable[["ShipmentStub", Link], StepResult]
UNTIL_S = 10.0


class ShipmentStub:
    """In the place of a `Shipment`."""

    steps: dict[str, Step] = {}  # noqa: RUF012 - replaced for each test

    def __init__(self, registration: Registration, cursors: Path) -> None:
        self.registration = registration
        self.cursor: Any = None
        self.sent_bytes = 0
        self.times: list[float] = []
        self.links: list[Link] = []
        self.told: list[tuple[str | None, str]] = []
        self.forgotten = 0

    @property
    def name(self) -> str:
        return Path(self.registration.journal).name

    def step(self, link: Link, deadline: float) -> StepResult:
        self.times.append(time.monotonic())
        self.links.append(link)
        found = ShipmentStub.steps.get(self.name)
        return DONE if found is None else found(self, link)

    def forget(self) -> None:
        self.forgotten += 1

    def note_trouble(self, kind: str | None, text: str = "") -> None:
        self.told.append((kind, text))


class ScheduleFixture:
    """A schedule over registrations, turned by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schedule: Schedule = Schedule(Discovery(Settings()))

    def register(self, name: str, url: str = HERE) -> None:
        (self.folder / name / SEGMENTS).mkdir(parents=True, exist_ok=True)
        registrations.write(Registration(str(self.folder / name), url, "alice"))

    def begin(self) -> None:
        self.schedule = Schedule(Discovery(Settings()))
        self.schedule.start()

    def task(self, name: str) -> Task:
        return next(one for one in self.schedule.tasks.values() if Path(one.registration.journal).name == name)

    def parcel(self, name: str) -> ShipmentStub:
        found: Any = self.task(name).shipment
        assert isinstance(found, ShipmentStub)
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UNTIL_S
        while not condition():
            assert time.monotonic() < deadline
            self.schedule.turn()

    def change(self, name: str) -> None:
        """Something new in a journal."""
        (self.folder / name / SEGMENTS / f"{time.time_ns()}").touch()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScheduleFixture]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(schedule, "Shipment", ShipmentStub)
    monkeypatch.setattr(schedule, "DISCOVER_S", 0.1)
    monkeypatch.setattr(schedule, "IDLE_S", 0.05)
    monkeypatch.setattr(ShipmentStub, "steps", {})
    desk = ScheduleFixture(tmp_path)
    yield desk
    desk.schedule.stop(0.0)


def failing(error: Callable[[], Exception], times: int = 1 << 30) -> Step:
    """A step that fails so often, then is done."""
    left = [times]

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        if left[0] == 0:
            return DONE
        left[0] -= 1
        raise error()

    return step


def answered() -> Exception:
    error = Unreachable("trouble with that one")
    error.answered = True
    return error


def test_everything_has_a_turn_and_then_rests(desk: ScheduleFixture) -> None:
    for number in range(20):
        desk.register(f"e{number}")
    desk.begin()
    desk.until(lambda: desk.schedule.is_idle() and all(task.settled for task in desk.schedule.tasks.values()))
    assert all(len(desk.parcel(f"e{number}").times) == 1 for number in range(20))


def test_a_change_is_found_and_sent(desk: ScheduleFixture) -> None:
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    desk.change("one")
    desk.until(lambda: len(desk.parcel("one").times) == 2)


def test_a_new_registration_is_found(desk: ScheduleFixture) -> None:
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    desk.register("two")
    desk.until(lambda: len(desk.schedule.tasks) == 2 and desk.task("two").settled)


def test_what_is_written_before_the_end_is_sent(desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    desk.change("one")
    desk.schedule.stop(5.0)
    assert len(desk.parcel("one").times) == 2


def test_a_development_login_that_is_signed_anew_uses_the_same_connection(
    desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each second would open one more."""
    signed = iter(range(1000))
    monkeypatch.setattr("ml_dash.sync.login.tokens_for", lambda *_: [f"token-{next(signed)}"])
    left = [50]

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        left[0] -= 1
        return StepResult(Remaining.MORE) if left[0] else DONE

    ShipmentStub.steps["one"] = step
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    assert len(desk.parcel("one").links) == 50
    assert len(set(map(id, desk.parcel("one").links))) <= schedule.WORKERS


# -- what fails -------------------------------------------------------------------------------------------------------


def test_one_that_fails_does_not_hold_the_others_up(desk: ScheduleFixture) -> None:
    ShipmentStub.steps["bad"] = failing(lambda: ServerRefused("no", status=400, code="malformed"))
    ShipmentStub.steps["worse"] = failing(lambda: ZeroDivisionError())
    for name in ("bad", "worse", "good"):
        desk.register(name)
    desk.begin()
    desk.until(lambda: desk.task("good").settled and bool(desk.task("bad").trouble and desk.task("worse").trouble))
    assert not desk.task("good").trouble
    assert desk.parcel("bad").told[-1] == ("refused", "no")


def test_a_journal_that_fails_waits_whatever_is_written_to_it(
    desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: high)
    ShipmentStub.steps["one"] = failing(answered)
    desk.register("one")
    desk.begin()
    desk.until(lambda: len(desk.parcel("one").times) == 1)
    for _ in range(10):
        desk.change("one")
        desk.schedule.turn()
    desk.until(lambda: len(desk.parcel("one").times) == 2)
    first, second = desk.parcel("one").times
    assert second - first >= backoff.FIRST_S


def test_requests_that_fail_together_are_one_failure(desk: ScheduleFixture) -> None:
    """Else a server that is away for a moment would be given up by four threads at once."""
    together = threading.Barrier(schedule.WORKERS - 1)

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        if len(parcel.times) == 1:
            together.wait(UNTIL_S)
            raise Unreachable("away")
        return DONE

    names = [f"e{number}" for number in range(schedule.WORKERS - 1)]
    ShipmentStub.steps.update(dict.fromkeys(names, step))
    for name in names:
        desk.register(name)
    seen = []
    desk.begin()
    desk.until(lambda: seen.append(desk.schedule.remotes[HERE].failures) or all(desk.task(n).settled for n in names)
               if HERE in desk.schedule.remotes else False)  # fmt: skip
    assert max(seen) <= 1
    assert desk.schedule.remotes[HERE].failures == 0


def test_a_server_that_hangs_holds_one_thread(desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is known: the others go on with other servers, and come back when it answers."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    hanging, go_on, working = threading.Event(), threading.Event(), []

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        working.append(1)
        try:
            if len(working) == 1:
                raise Unreachable("away")
            hanging.set()
            assert go_on.wait(UNTIL_S)
            return DONE
        finally:
            most.append(sum(task.busy for task in desk.schedule.tasks.values() if task.registration.remote == HERE))

    most: list[int] = []
    desk.register("h0")
    ShipmentStub.steps.update({f"h{number}": step for number in range(8)})
    desk.begin()
    desk.until(lambda: desk.schedule.remotes.get(HERE) is not None and desk.schedule.remotes[HERE].failures == 1)
    for number in range(1, 8):
        desk.register(f"h{number}")
    desk.register("there", THERE)
    desk.until(hanging.is_set)
    desk.until(lambda: len(desk.schedule.tasks) == 9 and desk.task("there").settled)
    assert len(working) == 2, "one tries, nobody else"
    go_on.set()
    desk.until(lambda: all(task.settled for task in desk.schedule.tasks.values()))


def test_a_pause_that_the_server_asks_for_is_kept_and_no_longer_than_an_hour() -> None:
    server = backoff.Backoff()
    assert 30 <= server.fail("busy", 30.0) <= 31
    assert not server.over
    assert server.fail("busy", 1e9) <= 3601
    server.succeed()
    assert server.over


def test_pauses_grow_with_jitter_up_to_a_minute() -> None:
    server = backoff.Backoff()
    waits = [server.fail("away") for _ in range(200)]
    assert max(waits[:1]) <= backoff.FIRST_S
    assert max(waits) <= backoff.LONGEST_S
    assert len(set(waits)) == 200
    assert min(waits[10:]) < 20 < 40 < max(waits[10:]), "full jitter: anything up to the longest"


def test_a_refused_login_is_waited_for_and_told_to_all(desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://dash.example.org"
    login.store(url, "old", "alice")

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        token = link._token() if callable(link._token) else link._token
        if token == "old":
            raise Unauthorised("the login is not accepted")
        return DONE

    names = [f"e{number}" for number in range(10)]
    ShipmentStub.steps.update(dict.fromkeys(names, step))
    for name in names:
        desk.register(name, url)
    desk.begin()
    desk.until(lambda: all(desk.parcel(name).told for name in names) and desk.schedule.is_idle())
    assert all(desk.parcel(name).told[-1][0] == "login" for name in names)
    assert all(desk.task(name).trouble for name in names)
    assert sum(len(desk.parcel(name).times) for name in names) <= schedule.WORKERS
    login.store(url, "new", "alice")
    desk.until(lambda: desk.schedule.is_idle() and not any(desk.task(name).trouble for name in names))
    assert all(desk.parcel(name).times for name in names)


def test_a_refusal_that_comes_after_a_new_login_holds_nothing_back(desk: ScheduleFixture) -> None:
    url = "http://dash.example.org"
    login.store(url, "old", "alice")
    asked, stored = threading.Event(), threading.Event()

    def step(parcel: ShipmentStub, link: Link) -> StepResult:
        if callable(link._token) and link._token() == "new":
            return DONE
        asked.set()
        assert stored.wait(30)
        raise Unauthorised("the login is not accepted")

    ShipmentStub.steps["one"] = step
    desk.register("one", url)
    desk.begin()
    desk.until(asked.is_set)
    login.store(url, "new", "alice")
    before = desk.schedule.logins.changed
    desk.until(lambda: desk.schedule.logins.changed > before)
    stored.set()
    desk.until(lambda: desk.schedule.is_idle() and desk.task("one").settled and not desk.task("one").trouble)


def test_many_hints_do_not_make_it_look_all_the_time() -> None:
    class Slow(Discovery):
        finds = 0

        def find(self) -> dict[str, Registration]:
            self.finds += 1
            time.sleep(0.02)  # a store of thousands
            return super().find()

    discovery = Slow(Settings())
    scheduled = Schedule(discovery)
    try:
        for _ in range(20):
            scheduled._take_hint("")
            scheduled.turn()
        finds, begun = discovery.finds, time.monotonic()
        while time.monotonic() - begun < 1.0:
            scheduled._take_hint("")
            scheduled.turn()
    finally:
        scheduled.stop(0)
    assert 1 <= discovery.finds - finds <= 6, "a tenth of the time, and one more"


def test_all_pauses_end_when_asked(desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: 1000.0)
    ShipmentStub.steps["one"] = failing(lambda: Unreachable("away"), 1)
    ShipmentStub.steps["two"] = failing(answered, 1)
    desk.register("one")
    desk.register("two", THERE)
    desk.begin()
    desk.until(lambda: bool(desk.task("one").trouble and desk.task("two").trouble) and desk.schedule.is_idle())
    desk.schedule.reload(Discovery(Settings()))
    desk.until(lambda: desk.task("one").settled and desk.task("two").settled)
    assert not desk.task("one").trouble
    assert desk.parcel("one").forgotten == 1


def test_a_server_is_asked_anew_now_and_then_and_not_all_the_time(
    desk: ScheduleFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    desk.task("one").asked = time.monotonic() - schedule.ASK_AGAIN_S - 1
    desk.until(lambda: desk.parcel("one").forgotten == 1)
    begun = time.monotonic()
    while time.monotonic() - begun < 0.3:
        desk.schedule.turn()
    assert desk.parcel("one").forgotten == 1


def test_a_journal_that_was_removed_is_told_and_comes_back(desk: ScheduleFixture) -> None:
    desk.register("one")
    desk.begin()
    desk.until(lambda: desk.task("one").settled)
    (desk.folder / "one").rename(desk.folder / "away")
    desk.until(lambda: bool(desk.task("one").trouble))
    (desk.folder / "away").rename(desk.folder / "one")
    desk.until(lambda: not desk.task("one").trouble and desk.schedule.is_idle())


def test_a_server_that_stalls_leaves_threads_for_the_others(desk: ScheduleFixture) -> None:
    """Every step to it hangs until the test is over; those to another server go on."""
    stalled, release = threading.Semaphore(0), threading.Event()

    def hang(parcel: ShipmentStub, link: Link) -> StepResult:
        stalled.release()
        release.wait(60)
        return DONE

    for number in range(8):
        desk.register(f"a{number}", "http://127.0.0.1:1")
        ShipmentStub.steps[f"a{number}"] = hang
        desk.register(f"b{number}", "http://127.0.0.1:2")
    try:
        desk.begin()
        desk.until(lambda: all(desk.parcel(f"b{number}").times for number in range(8)))
        # So many may hang, and no more; the last of them may begin after all others are done.
        for _ in range(schedule.WORKERS - 2):
            assert stalled.acquire(timeout=30)
        assert not stalled.acquire(blocking=False)
    finally:
        release.set()
