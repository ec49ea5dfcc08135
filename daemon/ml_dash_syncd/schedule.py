"""Which journal is sent next: in parallel, those that are being written first, what fails after a pause."""

from __future__ import annotations

import contextlib
import heapq
import logging
import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from ml_dash.errors import JournalError, MLDashError, ServerRefused, Unauthorised, Unreachable
from ml_dash.sync import register, remote
from ml_dash.sync.identity import with_identity
from ml_dash.sync.register import Registration

from . import watch
from .discover import Discovery
from .pauses import Login, Logins, Pause
from .settings import Settings
from .ship import Left, Outcome, Replaced, Shipment
from .states import Event, State, after
from .watch import LIVE_S, LIVE_SHARE, REST_S, REST_SHARE, SLOWEST_LIVE_S, SLOWEST_REST_S, Hints, Look, Pace

log = logging.getLogger("ml_dash.syncd")

WORKERS: Final = 4
TURN_S: Final = 1.0
"""How long one journal is sent before another one has its turn."""

LOOK_S: Final = 2.0

FIND_SHARE: Final = 0.1
"""How much of a core looking for new experiments may take while the file system tells of one after the other."""

SLOWEST_FIND_S: Final = 1.0
AGAIN_S: Final = 0.25
"""How soon after a hint to look once more: what is new was perhaps still being made."""

ASK_AGAIN_S: Final = 6 * 3600.0
"""After so long a server is asked again what it has: it may have been restored from a backup."""

PROBE_S: Final = 30.0
"""While a server does not answer, one task tries it; the others look again after so long, or when it answers."""

_numbers = count()
_NEVER: Final = float("inf")


@dataclass
class Task:
    """One registration: its shipment, the last look at its journal, and how it stands."""

    registration: Registration
    shipment: Shipment
    look: Look
    key: str
    state: State = State.SETTLED
    outcome: Outcome | None = None
    trouble: str = ""
    pause: Pause = field(default_factory=Pause)
    timer: float = _NEVER
    """When it has its next turn though nothing may have changed."""
    stale: bool = False
    """Is the server to be asked anew what it has, with the next step?"""
    asked: float = 0.0
    began: float = 0.0
    """When the step that is under way began."""

    @property
    def settled(self) -> bool:
        """Was all sent that was there when it was last looked at, or can it not be?"""
        return self.state in (State.SETTLED, State.REMOVED)

    @property
    def busy(self) -> bool:
        """Is it with a thread?"""
        return self.state in (State.BUSY, State.AGAIN)

    @property
    def login(self) -> Login:
        """Which login it is sent with."""
        return self.registration.remote, self.registration.user, self.registration.login

    @property
    def name(self) -> str:
        """What to call it in the log."""
        return "/".join(Path(self.registration.journal).parts[-3:-1])


Ending = tuple[Event, "float | None"]
"""How a step ended, and after how many seconds the task is to have another turn (None: when it changes)."""


@dataclass
class _Connection:
    """A link, and the login that it shows: a development login is signed anew for each step."""

    link: remote.Link
    token: str


Connections = dict[tuple[Login, int], _Connection]


class Schedule:
    """All tasks, and the threads that work on them. `turn()` is for one thread, the rest is inside."""

    def __init__(self, discovery: Discovery, *, workers: int = WORKERS) -> None:
        self.tasks: dict[str, Task] = {}
        self.sent_bytes = 0
        self.last_sent = 0.0
        self.errors = 0
        self.remotes: dict[str, Pause] = {}
        self.logins = Logins()
        self._discovery = discovery
        self._cursors = register.cursors_folder()
        self._guard = threading.Condition()
        self._live: deque[Task] = deque()
        self._backlog: deque[Task] = deque()
        self._timers: list[tuple[float, int, Task]] = []
        self._busy = 0
        self._busy_backlog = 0
        # How many threads are with each server, and how many may be.
        self._busy_with: Counter[str] = Counter()
        self._most_with = workers
        self._stopping = False
        self._deadline = _NEVER
        self._woken = threading.Event()
        self._look_at = 0.0
        self._found_at = 0.0
        self._looked_live = 0.0
        self._looked_rest = 0.0
        self._find_pace = Pace(0.0, SLOWEST_FIND_S, FIND_SHARE)
        self._live_pace = Pace(LIVE_S, SLOWEST_LIVE_S, LIVE_SHARE)
        self._rest_pace = Pace(REST_S, SLOWEST_REST_S, REST_SHARE)
        self._hints = Hints(self._hinted)
        self._new_things = False
        self._sized = 0
        self._rounds = 0
        # Tasks of which the file system told something; another thread adds to it.
        self._named: deque[str] = deque()
        self._found: dict[str, Registration] = {}
        self._live_tasks: set[str] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"ml-dash-send-{number}", daemon=True) for number in range(workers)
        ]

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._discovery.settings

    # -- the loop's part ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find what there is, and begin to send."""
        self._discover()
        for thread in self._threads:
            thread.start()

    def turn(self) -> None:
        """Look at what may have changed; then wait until the next look is due, or something happens."""
        now = time.monotonic()
        if now >= self._look_at or (self._new_things and now >= self._found_at + self._find_pace.interval_s):
            hinted, self._new_things = self._new_things, False
            if self.logins.look():
                self._try_all()
            self._found_at = now
            self._find_pace.timed(self._discover)
            self._look_at = now + (max(AGAIN_S, self._find_pace.interval_s) if hinted else LOOK_S)
            self._look_at_sizes()
        if self._named:
            self._look_at_named()
        if now - self._looked_live >= self._live_pace.interval_s:
            self._looked_live = now
            self._live_pace.timed(self._look_at_live)
        if now - self._looked_rest >= self._rest_pace.interval_s:
            self._looked_rest = now
            self._rest_pace.timed(self._look_at_rest)
        self._ring(now)
        due = min(
            self._look_at,
            self._found_at + self._find_pace.interval_s if self._new_things else _NEVER,
            self._looked_live + self._live_pace.interval_s,
            self._looked_rest + self._rest_pace.interval_s,
            self._timers[0][0] if self._timers else now + LOOK_S,
        )
        self._woken.wait(max(0.0, due - time.monotonic()))
        self._woken.clear()

    def wake(self) -> None:
        """End a wait. From any thread, and from signal handlers."""
        self._woken.set()

    def _hinted(self, name: str) -> None:
        if name:
            self._named.append(name)
        else:
            self._new_things = True
        self._woken.set()

    def _discover(self) -> None:
        found = self._discovery.find()
        if found is self._found:
            return
        self._found = found
        servers = len({registration.remote for registration in found.values()})
        # A server that stalls holds its threads for as long as a request may take: one is left for each of the others,
        # beside the one that backlogs leave free.
        self._most_with = len(self._threads) if servers < 2 else max(1, len(self._threads) - servers)
        for key in set(self.tasks) - set(found):
            with self._guard:
                task = self.tasks.pop(key)
                for queue in (self._live, self._backlog):
                    with contextlib.suppress(ValueError):
                        queue.remove(task)
                self._move(task, Event.DROP)
        for key, registration in found.items():
            known = self.tasks.get(key)
            if known is None:
                shipment = Shipment(registration, self._cursors)
                task = self.tasks[key] = Task(registration, shipment, Look(Path(registration.journal)), key)
                self._look(task)
                with contextlib.suppress(OSError):
                    # Before the first step, so that nothing comes between them unseen.
                    task.look.has_grown(listing=False)
                self._make_ready(task)
            elif known.registration != registration:
                known.registration = known.shipment.registration = registration
        for folder in (register.registered_folder(), *self._discovery.folders()):
            self._hints.watch(str(folder), "")
        for task in self.tasks.values():
            self._hints.watch(task.look.folder, task.key)

    def _look(self, task: Task) -> bool:
        try:
            changed = task.look.has_changed()
        except OSError as error:
            changed = self._unreadable(task, error)
        if task.look.live:
            self._live_tasks.add(task.key)
        else:
            self._live_tasks.discard(task.key)
        return changed

    def _unreadable(self, task: Task, error: OSError) -> bool:
        """A journal that is gone, or a disk that is: what was sent stays sent, and it is looked at again."""
        changed = task.look.changed_ns != -2
        task.look.changed_ns = -2
        task.look.sizes = {}
        task.look.live = False
        if changed:
            task.trouble = f"{task.look.folder} cannot be read: {error.strerror or error}"
        return False

    def _look_at_live(self) -> None:
        for key in list(self._live_tasks):
            task = self.tasks.get(key)
            if task is None:
                self._live_tasks.discard(key)
            elif self._look(task):
                self._make_ready(task)

    def _look_at_named(self) -> None:
        named = set()
        while self._named:
            named.add(self._named.popleft())
        for key in named:
            task = self.tasks.get(key)
            if task is not None and self._look(task):
                task.trouble = ""
                self._make_ready(task)

    def _look_at_sizes(self) -> None:
        """What neither locks nor folders tell: a part of the tasks each time, all of them in FULL_S."""
        tasks = list(self.tasks.values())
        count = -(-len(tasks) // max(1, round(watch.FULL_S / LOOK_S)))
        listing = self._rounds % watch.LISTED_EVERY == 0
        for task in tasks[self._sized : self._sized + count]:
            try:
                grown = not task.look.live and task.look.has_grown(listing=listing)
            except OSError:
                # That is noticed by the other looks.
                continue
            if grown:
                # It may have a living writer now.
                self._look(task)
                self._make_ready(task)
        self._sized += count
        if self._sized >= len(tasks):
            self._sized = 0
            self._rounds += 1

    def _look_at_rest(self) -> None:
        now = time.monotonic()
        for task in self.tasks.values():
            if task.look.live:
                continue
            try:
                changed = task.look.look_at_rest()
            except OSError as error:
                changed = self._unreadable(task, error)
            if changed:
                task.trouble = ""
                self._look(task)
                self._make_ready(task)
                self._hints.watch(task.look.folder, task.key)
            elif task.asked and now - task.asked > ASK_AGAIN_S:
                self._ask_anew(task)
                self._make_ready(task)

    def _ask_anew(self, task: Task) -> None:
        # Not all of them at once the next time.
        task.asked = time.monotonic() - random.uniform(0, ASK_AGAIN_S / 4)
        task.stale = True

    def _ring(self, now: float) -> None:
        while (task := self._due(now)) is not None:
            self._make_ready(task)

    def _due(self, now: float) -> Task | None:
        with self._guard:
            while self._timers and self._timers[0][0] <= now:
                when, _, task = heapq.heappop(self._timers)
                if task.timer == when:
                    task.timer = _NEVER
                    return task
        return None

    def _try_all(self) -> None:
        """Whatever waits is tried at once."""
        for pause in list(self.remotes.values()):
            pause.succeed()
        self.logins.refused.clear()
        for task in list(self.tasks.values()):
            task.pause.succeed()
            waits = task.timer != _NEVER or bool(task.trouble)
            if waits or not task.settled or (task.outcome is not None and task.outcome.left is Left.LATER):
                self._make_ready(task)

    def reload(self, discovery: Discovery) -> None:
        """Take new settings; all pauses end, and what was set aside is tried once more."""
        self._discovery = discovery
        for task in list(self.tasks.values()):
            self._ask_anew(task)
        self._try_all()
        self._new_things = True
        self.wake()

    def _make_ready(self, task: Task) -> None:
        with self._guard:
            self._move(task, Event.CHANGE)

    def _move(self, task: Task, event: Event) -> None:
        """Let an event happen to a task; one that becomes ready joins its queue. Only inside the guard."""
        before, task.state = task.state, after(task.state, event)
        if task.state is State.READY and before is not State.READY:
            (self._live if task.look.live else self._backlog).append(task)
            self._guard.notify()

    def _later(self, task: Task, seconds: float) -> None:
        """One turn more after so long; of several the first counts."""
        when = time.monotonic() + seconds
        with self._guard:
            if when < task.timer:
                task.timer = when
                heapq.heappush(self._timers, (when, next(_numbers), task))
        self.wake()

    def stop(self, wait_s: float) -> None:
        """Send what is there for at most so long, then end the threads; one that hangs in a request is left behind."""
        deadline = time.monotonic() + wait_s
        with self._guard:
            self._deadline = deadline
        # What was written since the last look is sent too.
        self._look_at_named()
        self._look_at_live()
        self._look_at_rest()
        while time.monotonic() < deadline and not self.at_rest():
            with self._guard:
                self._guard.wait(min(0.1, max(0.0, deadline - time.monotonic())))
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()) + 0.05)
        self._hints.close()

    def abort(self) -> None:
        """End at once."""
        with self._guard:
            self._stopping = True
            self._deadline = 0.0
            self._guard.notify_all()

    def at_rest(self) -> bool:
        """Is nothing being sent, and nothing ready to be?"""
        with self._guard:
            return not self._live and not self._backlog and not self._busy

    # -- the threads' part -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        links: Connections = {}
        try:
            while (taken := self._next()) is not None:
                task, living = taken
                event, again_s = self._attempt(task, links)
                with self._guard:
                    if again_s:
                        self._later(task, again_s)
                    self._busy -= 1
                    self._busy_backlog -= not living
                    self._busy_with[task.registration.remote] -= 1
                    self._move(task, event)
                    self._guard.notify_all()
                self.wake()
        finally:
            for connection in links.values():
                connection.link.close()

    def _next(self) -> tuple[Task, bool] | None:
        """The next task to work on, and whether it is being written; None at the end.

        Of backlogs one thread is always kept free for the living, of a server one for each other server.
        """
        with self._guard:
            while True:
                if self._stopping:
                    return None
                task = self._take(self._live)
                if task is None and self._busy_backlog < max(1, len(self._threads) - 1):
                    task = self._take(self._backlog)
                if task is not None:
                    self._move(task, Event.TAKE)
                    living = task.look.live
                    self._busy += 1
                    self._busy_backlog += not living
                    self._busy_with[task.registration.remote] += 1
                    task.began = time.monotonic()
                    return task, living
                self._guard.wait()

    def _take(self, queue: deque[Task]) -> Task | None:
        """The first of a queue whose server may have one more thread."""
        for place, task in enumerate(queue):
            if self._busy_with[task.registration.remote] < self._most_with:
                del queue[place]
                return task
        return None

    def _attempt(self, task: Task, links: Connections) -> Ending:
        """Let a task make a step, and say how that ended."""
        pause = self.remotes.setdefault(task.registration.remote, Pause())
        held_back = self._held_back(task, pause)
        if held_back is not None:
            return held_back
        before = task.shipment.sent_bytes
        try:
            if task.stale:
                task.stale = False
                task.shipment.forget()
            outcome = self._step(task, links)
        except Unauthorised as error:
            self._no_login(task, error)
            return Event.REFUSED, self.logins.waits(task.login) + 0.001
        except Unreachable as error:
            return self._unreachable(task, pause, error)
        except (ServerRefused, JournalError, OSError, MLDashError) as error:
            return self._failed(task, error)
        except Exception as error:
            # A fault of ours must not end the others' sending.
            log.exception("%s: sending failed", task.name)
            return self._failed(task, error)
        finally:
            with self._guard:
                if pause.probe is task:
                    pause.probe = None
            sent = task.shipment.sent_bytes - before
            if sent:
                self.sent_bytes += sent
                self.last_sent = time.time()
        self._succeeded(task, pause)
        task.outcome = outcome
        if outcome.left is Left.MORE or outcome.again_s == 0:
            return Event.MORE, None
        return Event.SENT, outcome.again_s

    def _held_back(self, task: Task, pause: Pause) -> Ending | None:
        """How a step ends that is not tried, since its server, its login or the task itself must wait; else None."""
        with self._guard:
            if not pause.over:
                task.trouble = pause.why
                return Event.HELD, max(0.01, pause.until - time.monotonic())
            if pause.failures and pause.probe is not None:
                task.trouble = pause.why
                return Event.HELD, PROBE_S
            if not task.pause.over:
                return Event.FAILED, max(0.01, task.pause.until - time.monotonic())
            wait = self.logins.waits(task.login)
            if not wait:
                # Where a server hangs, one thread hangs with it; the others go on with other servers.
                pause.probe = task if pause.failures else None
                return None
        refused = self.logins.refused.get(task.login)
        if refused is not None:
            task.shipment.tell("login", refused.why)
            task.trouble = refused.why
        return Event.REFUSED, wait

    def _succeeded(self, task: Task, pause: Pause) -> None:
        with self._guard:
            recovered = pause.failures > 0
            pause.succeed()
            waiting = [one for _, _, one in self._timers if one.state is State.HELD] if recovered else []
        task.pause.succeed()
        self.logins.accept(task.login)
        task.trouble = ""
        task.asked = task.asked or time.monotonic()
        if recovered:
            log.info("%s answers again", task.registration.remote)
        for one in waiting:
            if one.registration.remote == task.registration.remote:
                self._make_ready(one)

    def _step(self, task: Task, links: Connections) -> Outcome:
        """One step, under the identity that the journal is registered with and no other."""
        deadline = min(time.monotonic() + TURN_S, self._deadline)

        def attempt(number: int, token: str) -> Outcome:
            return task.shipment.step(_connect(links, task.login, number, token), deadline)

        return with_identity(task.registration, attempt)

    def _no_login(self, task: Task, error: Unauthorised) -> None:
        with self._guard:
            first = self.logins.refuse(task.login, str(error), task.began)
        if first:
            log.warning("%s", error)
        task.shipment.tell("login", str(error))
        task.trouble = str(error)

    def _unreachable(self, task: Task, pause: Pause, error: Unreachable) -> Ending:
        """The server, or the network, is in trouble; where the server said so of this one request, only this task."""
        with self._guard:
            self.errors += 1
            alone = error.answered and error.retry_after_s is None
            first = not alone and not pause.failures
            if alone:
                wait = task.pause.fail(error.message)
            elif pause.failed > task.began:
                # Somebody else's request has failed meanwhile: that is the same failure.
                wait = max(0.0, pause.until - time.monotonic())
            else:
                wait = pause.fail(error.message, error.retry_after_s)
        if first:
            log.warning("%s; tried again with growing pauses", error)
        task.shipment.tell("unreachable", error.message)
        task.trouble = str(error)
        return Event.FAILED if alone else Event.HELD, wait + 0.001

    def _failed(self, task: Task, error: Exception) -> Ending:
        self.errors += 1
        with contextlib.suppress(OSError):
            missing = isinstance(error, (FileNotFoundError, JournalError))
            if isinstance(error, Replaced) or (missing and not Path(task.registration.journal).exists()):
                # It was removed; what was acknowledged stays on the server.
                task.trouble = "the journal is gone from this machine"
                task.shipment.forget()
                # Only a disk may be away.
                removed = Path(task.registration.journal).parents[1].is_dir()
                return Event.REMOVED if removed else Event.SENT, None
        kind = "refused" if isinstance(error, ServerRefused) else "disk"
        text = str(error) or repr(error)
        if task.trouble != text:
            log.warning("%s: %s", task.name, text)
        task.trouble = text
        task.shipment.tell(kind, text)
        task.shipment.forget()
        wait = task.pause.fail(text)
        if isinstance(error, JournalError):
            # It does not get better by itself; a change of the journal is noticed anyway.
            return Event.REFUSED, 60.0
        return Event.FAILED, wait + 0.001


def _connect(links: Connections, login: Login, number: int, token: str) -> remote.Link:
    """The connection for the login of that number, with the token as it is now."""
    connection = links.get((login, number))
    if connection is None:
        link = remote.Link(login[0], lambda: links[login, number].token)
        connection = links[login, number] = _Connection(link, token)
    connection.token = token
    return connection.link
