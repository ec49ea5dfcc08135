"""The schedule: which journal is sent next, in parallel; live ones first, failed ones after a pause."""

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
from .backoff import Backoff, Login, Logins
from .discover import Discovery
from .settings import Settings
from .ship import Remaining, Replaced, Shipment, StepResult
from .task_states import TaskEvent, TaskState, next_state
from .waking import Bell
from .watch import (
    IDLE_S,
    IDLE_SHARE,
    LIVE_S,
    LIVE_SHARE,
    SLOWEST_IDLE_S,
    SLOWEST_LIVE_S,
    Hints,
    JournalWatch,
    PollRate,
)

log = logging.getLogger("ml_dash.syncd")

WORKERS: Final = 4
TURN_S: Final = 1.0
"""How long one journal is sent before another one has its turn."""

DISCOVER_S: Final = 2.0

DISCOVER_SHARE: Final = 0.1
"""How much of a core looking for new experiments may take while the file system tells of one after the other."""

SLOWEST_DISCOVER_S: Final = 1.0
RECHECK_S: Final = 0.25
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
    watch: JournalWatch
    key: str
    state: TaskState = TaskState.SETTLED
    result: StepResult | None = None
    trouble: str = ""
    backoff: Backoff = field(default_factory=Backoff)
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
        return self.state in (TaskState.SETTLED, TaskState.REMOVED)

    @property
    def busy(self) -> bool:
        """Is it with a thread?"""
        return self.state in (TaskState.BUSY, TaskState.AGAIN)

    @property
    def login(self) -> Login:
        """Which login it is sent with."""
        return self.registration.remote, self.registration.user, self.registration.login

    @property
    def name(self) -> str:
        """What to call it in the log."""
        return "/".join(Path(self.registration.journal).parts[-3:-1])


Ending = tuple[TaskEvent, "float | None"]
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
        self.remotes: dict[str, Backoff] = {}
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
        self._bell = Bell()
        self._discover_due = 0.0
        self._discovered_at = 0.0
        self._checked_live = 0.0
        self._checked_idle = 0.0
        self._discover_rate = PollRate(0.0, SLOWEST_DISCOVER_S, DISCOVER_SHARE)
        self._live_rate = PollRate(LIVE_S, SLOWEST_LIVE_S, LIVE_SHARE)
        self._idle_rate = PollRate(IDLE_S, SLOWEST_IDLE_S, IDLE_SHARE)
        self._hints = Hints(self._hinted)
        self._new_entries = False
        self._sized = 0
        self._rounds = 0
        # Tasks of which the file system told something; another thread adds to it.
        self._hinted_keys: deque[str] = deque()
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
        soonest = self._discovered_at + self._discover_rate.interval_s
        if now >= self._discover_due or (self._new_entries and now >= soonest):
            hinted, self._new_entries = self._new_entries, False
            if self.logins.poll():
                self._try_all()
            self._discovered_at = now
            self._discover_rate.measure(self._discover)
            self._discover_due = now + (max(RECHECK_S, self._discover_rate.interval_s) if hinted else DISCOVER_S)
            self._check_sizes()
        if self._hinted_keys:
            self._check_hinted()
        if now - self._checked_live >= self._live_rate.interval_s:
            self._checked_live = now
            self._live_rate.measure(self._check_live)
        if now - self._checked_idle >= self._idle_rate.interval_s:
            self._checked_idle = now
            self._idle_rate.measure(self._check_idle)
        self._ring(now)
        due = min(
            self._discover_due,
            self._discovered_at + self._discover_rate.interval_s if self._new_entries else _NEVER,
            self._checked_live + self._live_rate.interval_s,
            self._checked_idle + self._idle_rate.interval_s,
            self._timers[0][0] if self._timers else now + DISCOVER_S,
        )
        self._bell.wait(due - time.monotonic())

    def wake(self) -> None:
        """End a wait. From any thread, and from signal handlers."""
        self._bell.ring()

    def _hinted(self, name: str) -> None:
        if name:
            self._hinted_keys.append(name)
        else:
            self._new_entries = True
        self._bell.ring()

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
                self._move(task, TaskEvent.DROP)
        for key, registration in found.items():
            known = self.tasks.get(key)
            if known is None:
                shipment = Shipment(registration, self._cursors)
                task = self.tasks[key] = Task(registration, shipment, JournalWatch(Path(registration.journal)), key)
                self._check(task)
                with contextlib.suppress(OSError):
                    # Before the first step, so that nothing comes between them unseen.
                    task.watch.has_grown(listing=False)
                self._make_ready(task)
            elif known.registration != registration:
                known.registration = known.shipment.registration = registration
        for folder in (register.registered_folder(), *self._discovery.folders()):
            self._hints.watch(str(folder), "")
        for task in self.tasks.values():
            self._hints.watch(task.watch.folder, task.key)

    def _check(self, task: Task) -> bool:
        try:
            changed = task.watch.has_changed()
        except OSError as error:
            changed = self._unreadable(task, error)
        if task.watch.live:
            self._live_tasks.add(task.key)
        else:
            self._live_tasks.discard(task.key)
        return changed

    def _unreadable(self, task: Task, error: OSError) -> bool:
        """A journal that is gone, or a disk that is: what was sent stays sent, and it is looked at again."""
        changed = task.watch.changed_ns != -2
        task.watch.changed_ns = -2
        task.watch.sizes = {}
        task.watch.live = False
        if changed:
            task.trouble = f"{task.watch.folder} cannot be read: {error.strerror or error}"
        return False

    def _check_live(self) -> None:
        for key in list(self._live_tasks):
            task = self.tasks.get(key)
            if task is None:
                self._live_tasks.discard(key)
            elif self._check(task):
                self._make_ready(task)

    def _check_hinted(self) -> None:
        named = set()
        while self._hinted_keys:
            named.add(self._hinted_keys.popleft())
        for key in named:
            task = self.tasks.get(key)
            if task is not None and self._check(task):
                task.trouble = ""
                self._make_ready(task)

    def _check_sizes(self) -> None:
        """What neither locks nor folders tell: a part of the tasks each time, all of them in FULL_S."""
        tasks = list(self.tasks.values())
        count = -(-len(tasks) // max(1, round(watch.FULL_S / DISCOVER_S)))
        listing = self._rounds % watch.LISTED_EVERY == 0
        for task in tasks[self._sized : self._sized + count]:
            try:
                grown = not task.watch.live and task.watch.has_grown(listing=listing)
            except OSError:
                # That is noticed by the other looks.
                continue
            if grown:
                # It may have a living writer now.
                self._check(task)
                self._make_ready(task)
        self._sized += count
        if self._sized >= len(tasks):
            self._sized = 0
            self._rounds += 1

    def _check_idle(self) -> None:
        now = time.monotonic()
        for task in self.tasks.values():
            if task.watch.live:
                continue
            try:
                changed = task.watch.has_new_file()
            except OSError as error:
                changed = self._unreadable(task, error)
            if changed:
                task.trouble = ""
                self._check(task)
                self._make_ready(task)
                self._hints.watch(task.watch.folder, task.key)
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
        for server_backoff in list(self.remotes.values()):
            server_backoff.succeed()
        self.logins.refused.clear()
        for task in list(self.tasks.values()):
            task.backoff.succeed()
            waits = task.timer != _NEVER or bool(task.trouble)
            if waits or not task.settled or (task.result is not None and task.result.remaining is Remaining.LATER):
                self._make_ready(task)

    def reload(self, discovery: Discovery) -> None:
        """Take new settings; all pauses end, and what was set aside is tried once more."""
        self._discovery = discovery
        for task in list(self.tasks.values()):
            self._ask_anew(task)
        self._try_all()
        self._new_entries = True
        self.wake()

    def _make_ready(self, task: Task) -> None:
        with self._guard:
            self._move(task, TaskEvent.CHANGE)

    def _move(self, task: Task, event: TaskEvent) -> None:
        """Let an event happen to a task; one that becomes ready joins its queue. Only inside the guard."""
        before, task.state = task.state, next_state(task.state, event)
        if task.state is TaskState.READY and before is not TaskState.READY:
            (self._live if task.watch.live else self._backlog).append(task)
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
        self._check_hinted()
        self._check_live()
        self._check_idle()
        while time.monotonic() < deadline and not self.is_idle():
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

    def is_idle(self) -> bool:
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
                    self._move(task, TaskEvent.TAKE)
                    living = task.watch.live
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
        server_backoff = self.remotes.setdefault(task.registration.remote, Backoff())
        held_back = self._held_back(task, server_backoff)
        if held_back is not None:
            return held_back
        before = task.shipment.sent_bytes
        try:
            if task.stale:
                task.stale = False
                task.shipment.forget()
            result = self._step(task, links)
        except Unauthorised as error:
            self._no_login(task, error)
            return TaskEvent.REFUSED, self.logins.waits(task.login) + 0.001
        except Unreachable as error:
            return self._unreachable(task, server_backoff, error)
        except (ServerRefused, JournalError, OSError, MLDashError) as error:
            return self._failed(task, error)
        except Exception as error:
            # A fault of ours must not end the others' sending.
            log.exception("%s: sending failed", task.name)
            return self._failed(task, error)
        finally:
            with self._guard:
                if server_backoff.probe is task:
                    server_backoff.probe = None
            sent = task.shipment.sent_bytes - before
            if sent:
                self.sent_bytes += sent
                self.last_sent = time.time()
        self._succeeded(task, server_backoff)
        task.result = result
        if result.remaining is Remaining.MORE or result.again_s == 0:
            return TaskEvent.MORE, None
        return TaskEvent.SENT, result.again_s

    def _held_back(self, task: Task, server_backoff: Backoff) -> Ending | None:
        """How a step ends that is not tried, since its server, its login or the task itself must wait; else None."""
        with self._guard:
            if not server_backoff.over:
                task.trouble = server_backoff.why
                return TaskEvent.HELD, max(0.01, server_backoff.until - time.monotonic())
            if server_backoff.failures and server_backoff.probe is not None:
                task.trouble = server_backoff.why
                return TaskEvent.HELD, PROBE_S
            if not task.backoff.over:
                return TaskEvent.FAILED, max(0.01, task.backoff.until - time.monotonic())
            wait = self.logins.waits(task.login)
            if not wait:
                # Where a server hangs, one thread hangs with it; the others go on with other servers.
                server_backoff.probe = task if server_backoff.failures else None
                return None
        refused = self.logins.refused.get(task.login)
        if refused is not None:
            task.shipment.note_trouble("login", refused.why)
            task.trouble = refused.why
        return TaskEvent.REFUSED, wait

    def _succeeded(self, task: Task, server_backoff: Backoff) -> None:
        with self._guard:
            recovered = server_backoff.failures > 0
            server_backoff.succeed()
            waiting = [one for _, _, one in self._timers if one.state is TaskState.HELD] if recovered else []
        task.backoff.succeed()
        self.logins.accept(task.login)
        task.trouble = ""
        task.asked = task.asked or time.monotonic()
        if recovered:
            log.info("%s answers again", task.registration.remote)
        for one in waiting:
            if one.registration.remote == task.registration.remote:
                self._make_ready(one)

    def _step(self, task: Task, links: Connections) -> StepResult:
        """One step, under the identity that the journal is registered with and no other."""
        deadline = min(time.monotonic() + TURN_S, self._deadline)

        def attempt(number: int, token: str) -> StepResult:
            return task.shipment.step(_connect(links, task.login, number, token), deadline)

        return with_identity(task.registration, attempt)

    def _no_login(self, task: Task, error: Unauthorised) -> None:
        with self._guard:
            first = self.logins.refuse(task.login, str(error), task.began)
        if first:
            log.warning("%s", error)
        task.shipment.note_trouble("login", error.message)
        task.trouble = str(error)

    def _unreachable(self, task: Task, server_backoff: Backoff, error: Unreachable) -> Ending:
        """The server, or the network, is in trouble; where the server said so of this one request, only this task."""
        with self._guard:
            self.errors += 1
            alone = error.answered and error.retry_after_s is None
            first = not alone and not server_backoff.failures
            if alone:
                wait = task.backoff.fail(error.message)
            elif server_backoff.failed > task.began:
                # Somebody else's request has failed meanwhile: that is the same failure.
                wait = max(0.0, server_backoff.until - time.monotonic())
            else:
                wait = server_backoff.fail(error.message, error.retry_after_s)
        if first:
            log.warning("%s; tried again with growing pauses", error)
        task.shipment.note_trouble("unreachable", error.message)
        task.trouble = str(error)
        return TaskEvent.FAILED if alone else TaskEvent.HELD, wait + 0.001

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
                return TaskEvent.REMOVED if removed else TaskEvent.SENT, None
        kind = "refused" if isinstance(error, ServerRefused) else "disk"
        text = str(error) or repr(error)
        if task.trouble != text:
            log.warning("%s: %s", task.name, text)
        task.trouble = text
        task.shipment.note_trouble(kind, text)
        task.shipment.forget()
        wait = task.backoff.fail(text)
        if isinstance(error, JournalError):
            # It does not get better by itself; a change of the journal is noticed anyway.
            return TaskEvent.REFUSED, 60.0
        return TaskEvent.FAILED, wait + 0.001


def _connect(links: Connections, login: Login, number: int, token: str) -> remote.Link:
    """The connection for the login of that number, with the token as it is now."""
    connection = links.get((login, number))
    if connection is None:
        link = remote.Link(login[0], lambda: links[login, number].token)
        connection = links[login, number] = _Connection(link, token)
    connection.token = token
    return connection.link
