"""The schedule: which journal is sent next, in parallel; live ones first, failed ones after a pause.

One thread, the loop, calls `Schedule.turn`: it finds registrations, polls journals for changes and runs the timers.
Several worker threads take tasks that are ready, give each a time slice, and report how it ended. What is ready when is
decided by the table in `task_states` alone.

A task belongs to one worker at a time, from TAKE to the end of its step; only that worker uses its shipment. The states
and timers of tasks, the queues, the counts of busy workers, and which task probes a server change under `_guard` alone.
It is the only lock, it is re-entrant, and no file or network is touched while it is held. Backoffs, refused logins,
texts of troubles and counters are also changed without it, by single assignments: a race costs one attempt more, or a
count.

    loop:    search (hint, or every 2 s) -> poll live journals (0.2 s or slower) -> poll idle ones -> timers -> wait
    worker:  take from live, else from backlog -> one step of at most TURN_S -> event, and perhaps a timer -> next

How a change reaches a worker: the loop, a hint of the file system or a timer calls `_make_ready`, the table makes the
task READY, and it joins a queue once. A change while a worker has the task makes it AGAIN, so that a step that ends
well puts it into the queue once more. So no change is lost between a worker's last look at the journal and its
report.

Hints are an improvement, never a need: whatever they miss is found by polling (see `watch`).

Three backoffs, each of which stops only what has failed: of a server (all its tasks are HELD, one of them probes), of
a login (all tasks with it), of a task alone. Nothing here is on disk. A daemon that is killed begins with what
cursors and servers say, and with no backoff.
"""

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
from ml_dash.sync import registrations, remote
from ml_dash.sync.identity import with_identity
from ml_dash.sync.registrations import Registration

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
"""Number of worker threads."""

TURN_S: Final = 1.0
"""Time slice of a task: after this long, another task has its turn."""

DISCOVER_S: Final = 2.0
"""Time between two searches for new experiments, where the file system gives no hint."""

DISCOVER_SHARE: Final = 0.1
"""Largest share of a core for such searches while hints come one after the other."""

SLOWEST_DISCOVER_S: Final = 1.0
"""Longest time between two searches while hints come, however long a search takes."""

RECHECK_S: Final = 0.25
"""Time from a search after a hint to another one: the new experiment may not have been complete yet."""

ASK_AGAIN_S: Final = 6 * 3600.0
"""A server is asked again this often what it has of each journal: it may have been restored from a backup."""

PROBE_S: Final = 30.0
"""While a server does not answer and one task probes it, the others try again after this long, or once it answers."""

BAD_JOURNAL_S: Final = 60.0
"""A journal that cannot be read as one is tried again after this long."""

# Serial numbers for the heap of timers, so that two of the same time are never decided by comparing tasks.
_numbers = count()
_NEVER: Final = float("inf")


@dataclass
class Task:
    """One registration: its shipment, the watch over its journal, and its state.

    `state` and `timer` change under the schedule's guard. Only the loop changes `watch`, and only the worker that has
    the task uses `shipment` and sets `result`.
    """

    registration: Registration
    shipment: Shipment
    watch: JournalWatch
    key: str
    state: TaskState = TaskState.SETTLED
    result: StepResult | None = None
    trouble: str = ""
    backoff: Backoff = field(default_factory=Backoff)
    timer: float = _NEVER
    """When it has its next turn even if nothing has changed (time.monotonic)."""
    stale: bool = False
    """True if the next step should ask the server anew what it has."""
    asked: float = 0.0
    """When the server was last asked that (time.monotonic); 0 before the first step that succeeded."""
    began: float = 0.0
    """When its latest step began (time.monotonic)."""

    @property
    def settled(self) -> bool:
        """True if everything known of its journal was sent, or what remains cannot be sent until something changes."""
        return self.state in (TaskState.SETTLED, TaskState.REMOVED)

    @property
    def busy(self) -> bool:
        """True if a worker has it."""
        return self.state in (TaskState.BUSY, TaskState.AGAIN)

    @property
    def login(self) -> Login:
        """The login that it is sent with."""
        return self.registration.remote, self.registration.user, self.registration.login

    @property
    def name(self) -> str:
        """`project/name`, for messages."""
        return "/".join(Path(self.registration.journal).parts[-3:-1])


Ending = tuple[TaskEvent, "float | None"]
"""How a step ended, and after how many seconds the task has another turn (None: only after a change)."""


@dataclass
class _Connection:
    """A link, and the token that it sends; a development token is signed anew for each step."""

    link: remote.Link
    token: str


Connections = dict[tuple[Login, int], _Connection]
"""One worker's connections, by login and by the number of the login's token (a login may have several)."""


class Schedule:
    """All tasks, and the worker threads that send them.

    `start`, `turn`, `reload`, `stop` and `abort` are for one thread, the loop; `wake` and `is_idle` for any.
    """

    def __init__(self, discovery: Discovery, *, workers: int = WORKERS) -> None:
        # By the key of the registration.
        self.tasks: dict[str, Task] = {}
        self.sent_bytes = 0
        # When something was last acknowledged, in seconds since the epoch.
        self.last_sent = 0.0
        # Number of attempts that failed.
        self.errors = 0
        # Backoff of each server, by URL.
        self.remotes: dict[str, Backoff] = {}
        self.logins = Logins()
        self._discovery = discovery
        self._cursors = registrations.cursors_folder()
        self._guard = threading.Condition()
        # Tasks that are READY: those with a living writer, and the others.
        self._live: deque[Task] = deque()
        self._backlog: deque[Task] = deque()
        # A heap of (when, serial number, task). An entry counts only while it agrees with the task's own `timer`.
        self._timers: list[tuple[float, int, Task]] = []
        # Busy workers, and those of them that took a task from the backlog.
        self._busy = 0
        self._busy_backlog = 0
        # Workers busy with each server, and how many of them may be.
        self._busy_per_server: Counter[str] = Counter()
        self._max_per_server = workers
        self._stopping = False
        # No step goes on beyond it (time.monotonic).
        self._deadline = _NEVER
        self._bell = Bell()
        # When the next search is due, when the latest checks of each kind were (time.monotonic), and how often they may
        # be.
        self._discover_due = 0.0
        self._discovered_at = 0.0
        self._checked_live = 0.0
        self._checked_idle = 0.0
        self._discover_rate = PollRate(0.0, SLOWEST_DISCOVER_S, DISCOVER_SHARE)
        self._live_rate = PollRate(LIVE_S, SLOWEST_LIVE_S, LIVE_SHARE)
        self._idle_rate = PollRate(IDLE_S, SLOWEST_IDLE_S, IDLE_SHARE)
        self._hints = Hints(self._take_hint)
        # True if the file system gave a hint of a new experiment.
        self._new_entries = False
        # Where the comparison of sizes has come to in the list of tasks, and how often it has been through it.
        self._size_position = 0
        self._size_rounds = 0
        # Keys of tasks for which the file system gave a hint. Appended to by the threads of watchdog; a deque's append
        # and popleft are atomic.
        self._hinted_keys: deque[str] = deque()
        self._found: dict[str, Registration] = {}
        # Keys of tasks with a living writer, polled often; only the loop uses this and `_found`, the last answer of
        # the search (the same object if nothing changed).
        self._live_tasks: set[str] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"ml-dash-send-{number}", daemon=True) for number in range(workers)
        ]

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._discovery.settings

    # -- the loop's part ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find the registrations, and begin to send."""
        self._discover()
        for thread in self._threads:
            thread.start()

    def turn(self) -> None:
        """Do the checks that are due; then wait until the next one is, or until something happens."""
        now = time.monotonic()
        soonest = self._discovered_at + self._discover_rate.interval_s
        if now >= self._discover_due or (self._new_entries and now >= soonest):
            hinted, self._new_entries = self._new_entries, False
            if self.logins.poll():
                self._retry_all()
            self._discovered_at = now
            self._discover_rate.measure(self._discover)
            self._discover_due = now + (max(RECHECK_S, self._discover_rate.interval_s) if hinted else DISCOVER_S)
            # At the pace of searches, because each call looks at a part of the tasks only.
            self._check_sizes()
        if self._hinted_keys:
            self._check_hinted()
        if now - self._checked_live >= self._live_rate.interval_s:
            self._checked_live = now
            self._live_rate.measure(self._check_live)
        if now - self._checked_idle >= self._idle_rate.interval_s:
            self._checked_idle = now
            self._idle_rate.measure(self._check_idle)
        self._start_due(now)
        # Whatever is due first ends the wait. The heap is read without the guard: a timer that is set meanwhile rings
        # the bell.
        due = min(
            self._discover_due,
            self._discovered_at + self._discover_rate.interval_s if self._new_entries else _NEVER,
            self._checked_live + self._live_rate.interval_s,
            self._checked_idle + self._idle_rate.interval_s,
            self._timers[0][0] if self._timers else now + DISCOVER_S,
        )
        self._bell.wait(due - time.monotonic())

    def wake(self) -> None:
        """End the wait in `turn`. May be called from any thread and from signal handlers."""
        self._bell.ring()

    def _take_hint(self, name: str) -> None:
        """Note a hint of the file system: something is new in the folder of task `name`, or (empty) in a store."""
        if name:
            self._hinted_keys.append(name)
        else:
            self._new_entries = True
        self._bell.ring()

    def _discover(self) -> None:
        """Make tasks for new registrations, and drop those whose registrations are gone."""
        found = self._discovery.find()
        if found is self._found:
            return
        self._found = found
        servers = len({registration.remote for registration in found.values()})
        # A server that stalls holds its workers until their requests time out. So it may have only as many as leave one
        # for each other server, and one for live journals.
        self._max_per_server = len(self._threads) if servers < 2 else max(1, len(self._threads) - servers)
        for key in set(self.tasks) - set(found):
            with self._guard:
                task = self.tasks.pop(key)
                # It may be in either queue: it joined one when it became READY, and its writer may have begun or
                # ended since.
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
                    # Before the first step, so that no growth between the two goes unnoticed.
                    task.watch.has_grown(listing=False)
                self._make_ready(task)
            elif known.registration != registration:
                known.registration = known.shipment.registration = registration
        for folder in (registrations.registered_folder(), *self._discovery.folders()):
            self._hints.watch(str(folder), "")
        for task in self.tasks.values():
            self._hints.watch(task.watch.folder, task.key)

    def _check(self, task: Task) -> bool:
        """Poll a journal; True if it has changed."""
        try:
            changed = task.watch.has_changed()
        except OSError as error:
            changed = self._mark_unreadable(task, error)
        if task.watch.live:
            self._live_tasks.add(task.key)
        else:
            self._live_tasks.discard(task.key)
        return changed

    def _mark_unreadable(self, task: Task, error: OSError) -> bool:
        """Note that a journal, or its disk, is gone. The task stays, and its journal is polled on. Always False."""
        # -2 is no modification time, so the journal counts as changed once it can be read again.
        changed = task.watch.changed_ns != -2
        task.watch.changed_ns = -2
        task.watch.sizes = {}
        task.watch.live = False
        if changed:
            task.trouble = f"{task.watch.folder} cannot be read: {error.strerror or error}"
        return False

    def _check_live(self) -> None:
        """Poll the journals with a living writer, the only ones that grow as a rule."""
        for key in list(self._live_tasks):
            task = self.tasks.get(key)
            if task is None:
                self._live_tasks.discard(key)
            elif self._check(task):
                self._make_ready(task)

    def _check_hinted(self) -> None:
        """Poll the journals for which the file system gave hints; many hints for one journal cost one poll."""
        named = set()
        while self._hinted_keys:
            named.add(self._hinted_keys.popleft())
        for key in named:
            task = self.tasks.get(key)
            if task is not None and self._check(task):
                task.trouble = ""
                self._make_ready(task)

    def _check_sizes(self) -> None:
        """Compare the sizes of segments, for file systems where neither locks nor folder times show a change.

        A part of the tasks at each call, so that all of them have had their turn within FULL_S.
        """
        tasks = list(self.tasks.values())
        # Rounded up, so that few tasks are not left out.
        count = -(-len(tasks) // max(1, round(watch.FULL_S / DISCOVER_S)))
        listing = self._size_rounds % watch.LISTED_EVERY == 0
        for task in tasks[self._size_position : self._size_position + count]:
            try:
                grown = not task.watch.live and task.watch.has_grown(listing=listing)
            except OSError:
                # The other checks notice and report that.
                continue
            if grown:
                # It may have a living writer now.
                self._check(task)
                self._make_ready(task)
        self._size_position += count
        if self._size_position >= len(tasks):
            self._size_position = 0
            self._size_rounds += 1

    def _check_idle(self) -> None:
        """Look for new segment files in journals without a living writer, and let the server be asked now and then."""
        now = time.monotonic()
        for task in self.tasks.values():
            if task.watch.live:
                continue
            try:
                changed = task.watch.has_new_file()
            except OSError as error:
                changed = self._mark_unreadable(task, error)
            if changed:
                task.trouble = ""
                self._check(task)
                self._make_ready(task)
                self._hints.watch(task.watch.folder, task.key)
            elif task.asked and now - task.asked > ASK_AGAIN_S:
                self._mark_stale(task)
                self._make_ready(task)

    def _mark_stale(self, task: Task) -> None:
        """Let the next step ask the server what it has."""
        # With jitter, so that not all tasks come due at once the next time.
        task.asked = time.monotonic() - random.uniform(0, ASK_AGAIN_S / 4)
        task.stale = True

    def _start_due(self, now: float) -> None:
        """Make the tasks ready whose timers have run out."""
        while (task := self._pop_due(now)) is not None:
            self._make_ready(task)

    def _pop_due(self, now: float) -> Task | None:
        """Remove and return the next task whose timer has run out; None if there is none.

        An entry that does not agree with its task's `timer` was replaced by a sooner one, and is thrown away here: a
        heap has no cheap way to remove it earlier.
        """
        with self._guard:
            while self._timers and self._timers[0][0] <= now:
                when, _, task = heapq.heappop(self._timers)
                if task.timer == when:
                    task.timer = _NEVER
                    return task
        return None

    def _retry_all(self) -> None:
        """End all backoffs, and make everything ready that waits for one."""
        for server_backoff in list(self.remotes.values()):
            server_backoff.succeed()
        self.logins.refused.clear()
        for task in list(self.tasks.values()):
            task.backoff.succeed()
            # Everything but tasks that are well and have nothing to send: with thousands of those, a step for each
            # would keep the others waiting.
            waits = task.timer != _NEVER or bool(task.trouble)
            if waits or not task.settled or (task.result is not None and task.result.remaining is Remaining.LATER):
                self._make_ready(task)

    def reload(self, discovery: Discovery) -> None:
        """Use the settings of `discovery` from now on; all pauses end, and what was set aside is tried once more."""
        self._discovery = discovery
        for task in list(self.tasks.values()):
            self._mark_stale(task)
        self._retry_all()
        self._new_entries = True
        self.wake()

    def _make_ready(self, task: Task) -> None:
        """Tell a task that there may be something to send."""
        with self._guard:
            self._move(task, TaskEvent.CHANGE)

    def _move(self, task: Task, event: TaskEvent) -> None:
        """Apply an event to a task; one that becomes ready joins its queue. Only while `_guard` is held."""
        before, task.state = task.state, next_state(task.state, event)
        if task.state is TaskState.READY and before is not TaskState.READY:
            (self._live if task.watch.live else self._backlog).append(task)
            self._guard.notify()

    def _set_timer(self, task: Task, seconds: float) -> None:
        """Give a task another turn after this long, unless its timer comes sooner anyway."""
        when = time.monotonic() + seconds
        with self._guard:
            if when < task.timer:
                task.timer = when
                heapq.heappush(self._timers, (when, next(_numbers), task))
        self.wake()

    def stop(self, wait_s: float) -> None:
        """Send what is there for at most `wait_s` seconds, then end the workers.

        A worker that hangs in a request is left running: it is a daemon thread, and ends with the process.
        """
        deadline = time.monotonic() + wait_s
        with self._guard:
            self._deadline = deadline
        # Notice what was written since the last check, so that it is sent too.
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
            # A thread that was never started cannot be joined.
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()) + 0.05)
        self._hints.close()

    def abort(self) -> None:
        """Let each worker end after the step that it is taking. Does not wait for them."""
        with self._guard:
            self._stopping = True
            self._deadline = 0.0
            self._guard.notify_all()

    def is_idle(self) -> bool:
        """True if no task is being sent and none is ready."""
        with self._guard:
            return not self._live and not self._backlog and not self._busy

    # -- the threads' part -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Take and send tasks until the schedule stops. The body of a worker thread.

        The counts that `_next` raised go down together with the event, in one hold of the guard, so that `is_idle`
        never sees a task that is neither busy nor in a queue although it has more to send.
        """
        links: Connections = {}
        try:
            while (taken := self._next()) is not None:
                task, living = taken
                event, again_s = self._attempt(task, links)
                with self._guard:
                    if again_s:
                        self._set_timer(task, again_s)
                    self._busy -= 1
                    # As it was when the task was taken: its writer may have ended since.
                    self._busy_backlog -= not living
                    self._busy_per_server[task.registration.remote] -= 1
                    self._move(task, event)
                    self._guard.notify_all()
                self.wake()
        finally:
            for connection in links.values():
                connection.link.close()

    def _next(self) -> tuple[Task, bool] | None:
        """Wait for a task and take it; return it and whether its journal is live. None when the schedule stops.

        Journals with a living writer come first, and backlogs never take the last free worker, so that a living one
        need not wait until a backlog of many hours is sent.
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
                    self._busy_per_server[task.registration.remote] += 1
                    task.began = time.monotonic()
                    return task, living
                self._guard.wait()

    def _take(self, queue: deque[Task]) -> Task | None:
        """Remove and return the first task of a queue whose server may have another worker; None if there is none."""
        for place, task in enumerate(queue):
            if self._busy_per_server[task.registration.remote] < self._max_per_server:
                del queue[place]
                return task
        return None

    def _attempt(self, task: Task, links: Connections) -> Ending:
        """Take one step of a task; return how that ended. Every error ends here, as an event of the task."""
        # `setdefault` is one operation for threads: all workers get the same object.
        server_backoff = self.remotes.setdefault(task.registration.remote, Backoff())
        held_back = self._held_back(task, server_backoff)
        if held_back is not None:
            return held_back
        before = task.shipment.sent_bytes
        try:
            if task.stale:
                # Lowered before the step: raised again meanwhile, it counts for the next one.
                task.stale = False
                task.shipment.forget()
            result = self._step(task, links)
        except Unauthorised as error:
            self._login_refused(task, error)
            # More than 0, here and below: a pause of 0 would set no timer, and the task would wait for a change that
            # need not come.
            return TaskEvent.REFUSED, self.logins.waits(task.login) + 0.001
        except Unreachable as error:
            return self._unreachable(task, server_backoff, error)
        except (ServerRefused, JournalError, OSError, MLDashError) as error:
            return self._failed(task, error)
        except Exception as error:
            # A bug must not end the worker, and with it the sending of other journals.
            log.exception("%s: sending failed", task.name)
            return self._failed(task, error)
        finally:
            with self._guard:
                # Whatever happened, the next worker may probe.
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
        """Return how a step ends that may not be tried yet, for its server, its login or the task itself; else None."""
        with self._guard:
            if not server_backoff.over:
                task.trouble = server_backoff.why
                return TaskEvent.HELD, max(0.01, server_backoff.until - time.monotonic())
            if server_backoff.failures and server_backoff.probe is not None:
                task.trouble = server_backoff.why
                # Another worker probes. If that succeeds, `_succeeded` makes this task ready before the timer does.
                return TaskEvent.HELD, PROBE_S
            if not task.backoff.over:
                return TaskEvent.FAILED, max(0.01, task.backoff.until - time.monotonic())
            wait = self.logins.waits(task.login)
            if not wait:
                # Where a server hangs, only the worker that probes it hangs; the others go on with other servers.
                server_backoff.probe = task if server_backoff.failures else None
                return None
        refused = self.logins.refused.get(task.login)
        if refused is not None:
            task.shipment.note_trouble("login", refused.why)
            task.trouble = refused.why
        return TaskEvent.REFUSED, wait

    def _succeeded(self, task: Task, server_backoff: Backoff) -> None:
        """End the backoffs of a task that was sent, and wake all others that waited for its server."""
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
        """Take one step with the login that the journal is registered with, and no other."""
        deadline = min(time.monotonic() + TURN_S, self._deadline)

        def attempt(number: int, token: str) -> StepResult:
            return task.shipment.step(_connect(links, task.login, number, token), deadline)

        return with_identity(task.registration, attempt)

    def _login_refused(self, task: Task, error: Unauthorised) -> None:
        """Note that the server refused the task's login; log it the first time.

        `began` tells the logins when the request was made: a refusal that comes after a new login was stored says
        nothing about that one.
        """
        with self._guard:
            first = self.logins.refuse(task.login, str(error), task.began)
        if first:
            log.warning("%s", error)
        task.shipment.note_trouble("login", str(error))
        task.trouble = str(error)

    def _unreachable(self, task: Task, server_backoff: Backoff, error: Unreachable) -> Ending:
        """Back off after an answer that did not come: the server for all its tasks, or this task alone.

        Only this task if the server did answer, with a failure of this one request (a 5xx without Retry-After).
        """
        with self._guard:
            self.errors += 1
            alone = error.answered and error.retry_after_s is None
            first = not alone and not server_backoff.failures
            if alone:
                # A request that this server cannot serve must not stop the sending of other journals.
                wait = task.backoff.fail(error.message)
            elif server_backoff.failed > task.began:
                # A request of another worker has failed since this step began: count that as one failure.
                wait = max(0.0, server_backoff.until - time.monotonic())
            else:
                wait = server_backoff.fail(error.message, error.retry_after_s)
        if first:
            log.warning("%s; trying again with growing pauses", error)
        task.shipment.note_trouble("unreachable", error.message)
        task.trouble = str(error)
        return TaskEvent.FAILED if alone else TaskEvent.HELD, wait + 0.001

    def _failed(self, task: Task, error: Exception) -> Ending:
        """Report an error that concerns this task only, and begin anew after a pause."""
        self.errors += 1
        with contextlib.suppress(OSError):
            missing = isinstance(error, (FileNotFoundError, JournalError))
            if isinstance(error, Replaced) or (missing and not Path(task.registration.journal).exists()):
                # The journal was removed; what was acknowledged stays on the server.
                task.trouble = "the journal is gone from this machine"
                task.shipment.forget()
                # Where the project's folder is missing as well, a disk may not be mounted.
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
            # It does not get better by itself, and a change of the journal is noticed anyway.
            return TaskEvent.REFUSED, BAD_JOURNAL_S
        return TaskEvent.FAILED, wait + 0.001


def _connect(links: Connections, login: Login, number: int, token: str) -> remote.Link:
    """Return the link for the login's token of that number, opened if needed, with the token as it is now."""
    connection = links.get((login, number))
    if connection is None:
        link = remote.Link(login[0], lambda: links[login, number].token)
        connection = links[login, number] = _Connection(link, token)
    connection.token = token
    return connection.link
