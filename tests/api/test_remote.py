"""An experiment with `remote=`: what its process asks for, counts, waits for and says; it talks to no server."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment, InvalidValue, RemoteClient
from ml_dash.core.names import experiment_id
from ml_dash.disk.config import state_folder
from ml_dash.disk.lock import Turn
from ml_dash.errors import NotFound
from ml_dash.journal.blobs import names
from ml_dash.journal.segment import list_segments
from ml_dash.reading.located import at
from ml_dash.sync import login, proof, register, sent
from ml_dash.sync.identity import connect
from tests.running import Server, end_started, once

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python

HERE = "http://localhost:1"
AFAR = "https://dash.example.org"


class Uploader:
    """What the uploader writes down, written down by a test: its lock and its cursors."""

    def __init__(self) -> None:
        self._lock: Turn | None = None

    def run(self) -> None:
        """It runs."""
        state_folder().mkdir(parents=True, exist_ok=True)
        self._lock = Turn(register.lock_path())
        assert self._lock.take(5)

    def end(self) -> None:
        """It ends."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.give_back()

    def acknowledge(self, share: float = 1.0, *, files: bool = True, **more: Any) -> None:
        """The server has that share of the bytes of every segment, cut to no frame in particular."""
        register.cursors_folder().mkdir(parents=True, exist_ok=True)
        for one in register.registrations():
            journal = Path(one.journal)
            sizes = {path.name: int(path.stat().st_size * share) for _, path in list_segments(journal)}
            self.write(one, {"segments": sizes, "blobs": list(names(journal)) if files else [], **more})

    def write(self, one: register.Registration, cursor: dict[str, Any]) -> None:
        path = register.cursors_folder() / f"{one.key}.json"
        temporary = path.with_suffix(".tmp")
        nothing = {"version": 1, "journal": one.id, "segments": {}, "blobs": [], "deaths": [], "parked": {}}
        temporary.write_text(json.dumps({**nothing, **cursor}))
        os.replace(temporary, path)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins, registrations and cursors of the test's own; nothing of it is told of when the tests end."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setattr(sent, "_process", sent._Process(os.getpid(), sent.deque(), set()))
    monkeypatch.setattr(register, "_attempts", register._Attempts())


@pytest.fixture
def uploader() -> Iterator[Uploader]:
    uploader = Uploader()
    yield uploader
    uploader.end()


# -- asking for it ---------------------------------------------------------------------------------------------------


def test_opening_registers_the_journal(make: Make, runs: Path) -> None:
    with make(remote=HERE, user_name="alice") as experiment:
        (one,) = register.registrations()
        assert (one.journal, one.remote, one.user) == (str(runs / "cv" / "first" / ".journal"), HERE, "alice")
    assert experiment.durable_state()["remote"] == 0


def test_nothing_is_registered_without_a_remote_or_when_disabled(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make().open()
    monkeypatch.setenv("ML_DASH_DISABLED", "1")
    make("second", remote=HERE, user_name="alice").open()
    assert register.registrations() == []


def test_reading_registers_nothing(make: Make) -> None:
    make().open().close()
    make(remote=HERE, user_name="alice", read_only=True).open()
    assert register.registrations() == []


def test_a_second_handle_with_another_server_registers_that_too(make: Make) -> None:
    make(remote=HERE, user_name="alice").open()
    make(remote="http://localhost:2", user_name="alice").open()
    assert {one.remote for one in register.registrations()} == {HERE, "http://localhost:2"}


def test_an_api_key_goes_to_the_logins_and_nowhere_else(make: Make, tmp_path: Path) -> None:
    with make(remote=AFAR, api_key="mld_secret") as experiment:
        experiment.log("training starts")
    (one,) = register.registrations()
    assert one.tokens() == ["mld_secret"]
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and b"mld_secret" in path.read_bytes()]
    assert [path.name for path in holding] == ["credentials.json"]


def test_a_state_folder_that_cannot_be_written_costs_a_warning_and_no_event(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for name in ("XDG_STATE_HOME", "HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    for name in ("first", "second"):
        with make(name, remote=HERE, user_name="alice") as experiment:
            experiment.log("kept")
            assert experiment.wait_synced() is False
        assert experiment.log().read() if experiment.is_open else experiment.durable_state()["written"] == 3
    assert caplog.text.count("could not be asked for: ") == 1
    assert "could not be asked for; run: ml-dash push" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("ML_DASH_AUTOSYNC", "perhaps"), ("ML_DASH_EXIT_WAIT", "soon")])
def test_a_variable_that_makes_no_sense_is_an_error_before_anything_is_recorded(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidValue, match=name):
        Experiment("first", "cv", remote=HERE, user_name="alice")


def test_no_call_opens_a_connection(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "model").write_text("weights")
    with make(remote=HERE, user_name="alice") as experiment:
        experiment.log("x")
        experiment.metric("loss").append(value=1)
        experiment.file(tmp_path / "model")
        assert experiment.durable_state()["remote"] == 0
        assert experiment.wait_synced(timeout=0) is False


def test_append_calls_nothing_more_than_without_a_remote(make: Make) -> None:
    """What it costs is measured by the bench (`daemon_beside_training`); here, that nothing was put into its way."""

    def called(**remote: str) -> list[str]:
        with make(f"calls-{len(remote)}", **remote) as experiment:
            metric = experiment.metric("loss")
            metric.append(value=0.5, step=0)
            names: list[str] = []

            def seen(frame: FrameType, event: str, argument: Any) -> None:
                if event == "call":
                    names.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)
                elif event == "c_call":
                    names.append(argument.__name__)

            sys.setprofile(seen)
            try:
                metric.append(value=0.5, step=1)
            finally:
                sys.setprofile(None)
            return names[:-1]  # the last is setprofile itself

    calls = called()
    assert calls
    assert called(remote=HERE, user_name="alice") == calls


# -- counting --------------------------------------------------------------------------------------------------------


def test_what_the_server_has_is_counted_from_the_cursor(make: Make, uploader: Uploader) -> None:
    with make(remote=HERE, user_name="alice") as experiment:
        for step in range(100):
            experiment.metric("loss").append(value=step)
        assert experiment.durable_state()["remote"] == 0
        uploader.acknowledge()
        assert experiment.durable_state()["remote"] == experiment.durable_state()["written"] == 101
        experiment.log("one more")
        counts = experiment.durable_state()
        assert (counts["written"], counts["remote"]) == (102, 101)
    assert experiment.durable_state()["remote"] == 101
    uploader.acknowledge()
    assert experiment.durable_state()["remote"] == 103


def test_a_cursor_at_a_frame_counts_the_events_before_it(make: Make, uploader: Uploader) -> None:
    from ml_dash.journal.reader import Frame, scan

    with make(remote=HERE, user_name="alice") as experiment:
        for step in range(20):
            experiment.metric("loss").append(value=step)
        (one,) = register.registrations()
        ((_, path),) = list_segments(Path(one.journal))
        frames = [item for item in scan(path) if isinstance(item, Frame)]
        register.cursors_folder().mkdir()
        for frame in frames:
            uploader.write(one, {"segments": {path.name: frame.offset}})
            assert experiment.durable_state()["remote"] == frame.seq


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.77, 0.999])
def test_a_cursor_that_points_nowhere_never_counts_too_much(make: Make, uploader: Uploader, share: float) -> None:
    from ml_dash.journal.reader import Frame, scan

    with make(remote=HERE, user_name="alice") as experiment:
        for step in range(200):
            experiment.metric("loss").append(value=step)
        uploader.acknowledge(share)
        (one,) = register.registrations()
        ((_, path),) = list_segments(Path(one.journal))
        reached = int(path.stat().st_size * share)
        whole = sum(item.offset + item.size <= reached for item in scan(path) if isinstance(item, Frame))
        assert experiment.durable_state()["remote"] <= whole


def test_events_in_several_segments_are_counted(
    make: Make, uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ml_dash.journal import writer

    monkeypatch.setattr(writer, "ROLL_BYTES", 2_000)
    with make(remote=HERE, user_name="alice") as experiment:
        for step in range(300):
            experiment.metric("loss").append(value=step)
        (one,) = register.registrations()
        segments = list_segments(Path(one.journal))
        assert len(segments) > 3
        register.cursors_folder().mkdir()
        sizes = {path.name: path.stat().st_size for _, path in segments[:2]}
        uploader.write(one, {"segments": sizes})
        from ml_dash.journal.reader import open_segment

        third = open_segment(segments[2][1])
        assert third is not None
        assert experiment.durable_state()["remote"] == third.header.first_seq


def test_other_writers_of_the_journal_do_not_count(make: Make, uploader: Uploader) -> None:
    with make(remote=HERE, user_name="alice") as first:
        first.log("by an earlier run")
    with make(remote=HERE, user_name="alice") as second:
        second.log("by this one")
        uploader.acknowledge()
        assert second.durable_state()["remote"] == 2


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_without_a_remote_there_is_nothing_to_wait_for(make: Make) -> None:
    assert make().open().wait_synced() is True


def test_a_handle_that_recorded_nothing_has_nothing_to_wait_for(make: Make) -> None:
    assert make(remote=HERE, user_name="alice").wait_synced() is True


def test_waiting_ends_when_all_is_acknowledged(make: Make, uploader: Uploader, python: Python) -> None:
    uploader.run()
    with make(remote=HERE, user_name="alice") as experiment:
        experiment.log("x")
        assert experiment.wait_synced(timeout=0.05) is False
        uploader.acknowledge()
        begun = monotonic()
        assert experiment.wait_synced(timeout=30) is True
        assert monotonic() - begun < 5
    assert experiment.wait_synced(timeout=0) is False  # the closing event
    uploader.acknowledge()
    assert experiment.wait_synced(timeout=0) is True


def test_waiting_covers_files(make: Make, uploader: Uploader, tmp_path: Path) -> None:
    uploader.run()
    (tmp_path / "model").write_text("weights")
    with make(remote=HERE, user_name="alice") as experiment:
        experiment.file(tmp_path / "model")
        uploader.acknowledge(files=False)
        assert experiment.wait_synced(timeout=0) is False
        uploader.acknowledge()
        assert experiment.wait_synced(timeout=0) is True


def test_a_file_that_was_replaced_is_not_waited_for(
    make: Make, uploader: Uploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_KEEP_VERSIONS", "1")
    uploader.run()
    with make(remote=HERE, user_name="alice") as experiment:
        (tmp_path / "model").write_text("first")
        old = experiment.file(tmp_path / "model")
        (tmp_path / "model").write_text("second")
        experiment.file(tmp_path / "model")
        (one,) = register.registrations()
        uploader.acknowledge(files=False)
        sizes = {path.name: path.stat().st_size for _, path in list_segments(Path(one.journal))}
        newer = [name for name in names(Path(one.journal)) if not name.startswith(old["checksum"])]
        uploader.write(one, {"segments": sizes, "blobs": newer})
        assert experiment.wait_synced(timeout=0) is True


def test_no_login_is_told_at_once(make: Make, uploader: Uploader, caplog: pytest.LogCaptureFixture) -> None:
    uploader.run()
    with make(remote=AFAR, user_name="alice") as experiment:
        assert experiment.wait_synced() is False
    assert f"there is no login for {AFAR}; run: ml-dash login {AFAR}" in caplog.text


def test_a_login_that_is_not_accepted_is_told_at_once(
    make: Make, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    uploader.run()
    with make(remote=HERE, user_name="alice") as experiment:
        uploader.acknowledge(0, trouble={"kind": "login", "text": "the token was revoked", "since": 1})
        assert experiment.wait_synced() is False
    assert "the token was revoked; run: ml-dash login" in caplog.text


def test_a_segment_that_is_refused_for_good_is_told_at_once(
    make: Make, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    uploader.run()
    with make(remote=HERE, user_name="alice") as experiment:
        (one,) = register.registrations()
        ((_, path),) = list_segments(Path(one.journal))
        uploader.acknowledge(0, parked={path.name: "conflict at byte 120"})
        assert experiment.wait_synced() is False
    assert "conflict at byte 120" in caplog.text


def test_nobody_who_uploads_is_told_at_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with make(remote=HERE, user_name="alice") as experiment:
        assert experiment.wait_synced() is False
    assert "no ml-dash-syncd runs, and ML_DASH_AUTOSYNC is off" in caplog.text


def test_an_unreachable_server_is_waited_for_and_then_named(
    make: Make, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    uploader.run()
    with make(remote=HERE, user_name="alice") as experiment:
        uploader.acknowledge(0, trouble={"kind": "unreachable", "text": "connection refused", "since": 1})
        begun = monotonic()
        assert experiment.wait_synced(timeout=0.2) is False
        assert 0.2 <= monotonic() - begun < 5
    assert "are not acknowledged after 0.2 s: connection refused" in caplog.text


def test_a_forked_child_waits_for_what_it_wrote_itself(python: Python) -> None:
    ended = python(
        """
        import os, sys
        from pathlib import Path
        from ml_dash import Experiment

        with Experiment("first", "cv", remote="http://localhost:1", user_name="alice") as experiment:
            experiment.log("by the parent")
            child = os.fork()
            if child == 0:
                print(experiment.wait_synced(0), flush=True)  # it has written nothing yet
                experiment.log("by the child")
                print(experiment.wait_synced(0), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        """
    )
    assert ended.out == "True\nFalse\n"


# -- what is said ----------------------------------------------------------------------------------------------------

LINES = """
import sys
from ml_dash import Experiment

with Experiment("first", "cv", remote=sys.argv[1], user_name="alice") as experiment:
    for step in range(10):
        experiment.log(str(step))
"""


def test_without_a_login_the_start_and_the_end_say_so(python: Python) -> None:
    ended = python(LINES, AFAR, env={"ML_DASH_QUIET": "0"})
    start, no_login, end = ended.err.splitlines()
    assert start.startswith("ml-dash: cv/first -> ")
    assert no_login == f"ml-dash: no login for {AFAR} yet: data is kept here; run ml-dash login {AFAR}"
    assert end == (
        f"ml-dash: 12 events are not on {AFAR} yet, and kept here: there is no login for {AFAR}; "
        f"run: ml-dash login {AFAR}"
    )


def test_the_end_says_how_many_events_are_not_sent_and_who_sends_them(python: Python, uploader: Uploader) -> None:
    ended = python(LINES, HERE, env={"ML_DASH_QUIET": "0"})
    assert ended.err.splitlines()[-1] == (
        f"ml-dash: 12 events are not on {HERE} yet, and kept here; nobody is sending; "
        "run: ml-dash-syncd once, or the job as: ml-dash-syncd exec -- CMD"
    )
    uploader.run()
    ended = python(LINES, HERE, env={"ML_DASH_QUIET": "0"})
    assert ended.err.splitlines()[-1] == (
        f"ml-dash: 12 events are not on {HERE} yet, and kept here; ml-dash-syncd goes on sending; "
        "where it ends with the job, run that as: ml-dash-syncd exec -- CMD"
    )


CLOSES = """
import sys
from ml_dash import Experiment

with Experiment("first", "cv", remote=sys.argv[1], user_name="alice") as experiment:
    experiment.log("a message")
    print(experiment.durable_state()["written"], flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("cursor", "line"), [({}, False), ({"trouble": {"kind": "unreachable", "text": "refused", "since": 1}}, True)]
)
def test_a_closing_event_that_is_under_way_is_no_trouble(
    python: Python, uploader: Uploader, cursor: dict[str, Any], line: bool
) -> None:
    """All but that was acknowledged before the end; with nobody who sends, it is told as ever."""
    uploader.run()
    started = python.start(CLOSES, HERE, env={"ML_DASH_QUIET": "0"})
    assert started.line() == "2"
    uploader.acknowledge(**cursor)
    started.tell()
    ended = started.end()
    assert ("1 event is not on" in ended.err) is line, ended.err


def test_a_closing_event_that_nobody_sends_is_told(python: Python, uploader: Uploader) -> None:
    started = python.start(CLOSES, HERE, env={"ML_DASH_QUIET": "0"})
    assert started.line() == "2"
    uploader.acknowledge()
    started.tell()
    assert "1 event is not on http://localhost:1 yet, and kept here; nobody is sending" in started.end().err


@pytest.mark.parametrize("variables", [{"ML_DASH_QUIET": "1"}, {"RANK": "1"}, {"SLURM_PROCID": "2"}])
def test_nothing_is_said_where_nobody_reads(python: Python, variables: dict[str, str]) -> None:
    assert python(LINES, AFAR, env={"ML_DASH_QUIET": "0", **variables}).err == ""


def test_nothing_is_said_at_the_end_when_all_is_sent(
    python: Python, uploader: Uploader, until: Callable[[Callable[[], Any]], None]
) -> None:
    uploader.run()
    started = python.start(
        LINES + "\nprint('closed', flush=True)\nsys.stdin.readline()\n", HERE, env={"ML_DASH_QUIET": "0"}
    )
    assert started.line() == "closed"
    uploader.acknowledge()
    started.tell()
    assert len(started.end().err.splitlines()) == 1


def test_a_process_waits_at_its_end_as_long_as_it_is_told(python: Python, uploader: Uploader) -> None:
    uploader.run()
    begun = monotonic()
    ended = python(LINES, HERE, env={"ML_DASH_QUIET": "0", "ML_DASH_EXIT_WAIT": "0.5"})
    assert monotonic() - begun > 0.5
    assert "12 events are not on" in ended.err
    started = python.start(LINES, HERE, env={"ML_DASH_QUIET": "0", "ML_DASH_EXIT_WAIT": "60"})
    while started.process.poll() is None:
        uploader.acknowledge()
    assert len(started.end().err.splitlines()) == 1


def test_a_server_is_named_once_however_many_experiments_go_there(python: Python) -> None:
    ended = python(
        """
        from ml_dash import Experiment
        for number in range(5):
            with Experiment(f"run-{number}", "cv", remote="https://dash.example.org", user_name="alice"):
                pass
        """,
        env={"ML_DASH_QUIET": "0"},
    )
    assert ended.err.count("no login for https://dash.example.org yet") == 1
    assert ended.err.count("10 events are not on https://dash.example.org yet") == 1


def test_experiments_that_are_done_are_let_go_of(make: Make, uploader: Uploader) -> None:
    uploader.run()
    for number in range(30):
        make(f"run-{number}", remote=HERE, user_name="alice").open().close()
        uploader.acknowledge()
    assert len(sent._here().sent) <= 2


def test_a_login_that_comes_later_is_found_by_the_next_process(make: Make) -> None:
    make(remote=AFAR, user_name="alice").open().close()
    (one,) = register.registrations()
    assert one.tokens() == []
    login.store(AFAR, "mld_new", "alice")
    assert one.tokens() == ["mld_new"]


def test_the_library_says_nothing_of_uploads_at_debug_level_that_holds_a_token(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), make(remote=AFAR, api_key="mld_secret") as experiment:
        assert experiment.wait_synced(0) is False
        assert "mld_secret" not in repr(experiment)
    assert "mld_secret" not in caplog.text


# -- a real uploader and a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serving = Server(tmp_path_factory.mktemp("remote") / "data").start()
    yield serving
    serving.end()


@pytest.fixture
def started_uploader() -> Iterator[dict[str, str]]:
    """The variables of a process that may start the uploader; that is ended after the test."""
    yield {"ML_DASH_AUTOSYNC": "1", "ML_DASH_QUIET": "0"}
    end_started(state_folder())


def there(server: Server, name: str = "first") -> list[int]:
    """The steps of the points that the server has."""
    with RemoteClient(server.url, user_name="alice") as client:
        points = client.points(experiment_id("cv", name), "loss", limit=10_000)["data"]
    return [point["data"]["step"] for point in points]


RECORD = """
import os, signal, sys
from pathlib import Path
from ml_dash import Experiment
experiment = Experiment(sys.argv[2], "cv", remote=sys.argv[1], user_name="alice").open()
for step in range(500):
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
"""


def test_a_process_starts_an_uploader_that_sends_all(
    python: Python, server: Server, started_uploader: dict[str, str]
) -> None:
    ended = python(
        RECORD + """
Path("weights.bin").write_bytes(bytes(1 << 20))
experiment.file("weights.bin")
before = experiment.durable_state()["remote"]
assert experiment.wait_synced(60) is True
state = experiment.durable_state()
assert before < state["remote"] == state["written"] == 502, state
pid = int(__import__("json").loads((Path(sys.argv[3]) / "syncd.json").read_text())["pid"])
print(os.getsid(pid) != os.getsid(0), os.readlink(f"/proc/{pid}/cwd"), os.readlink(f"/proc/{pid}/fd/0"))
experiment.log("the last word")
experiment.close()
""",
        server.url, "first", state_folder(), env={**started_uploader, "ML_DASH_EXIT_WAIT": "60"},
    )  # fmt: skip
    assert ended.out == "True / /dev/null\n"
    # All of it was sent when it ended: nothing is said then.
    assert len(ended.err.splitlines()) == 1
    assert there(server) == list(range(500))
    with RemoteClient(server.url, user_name="alice") as client:
        assert client.experiment(experiment_id("cv", "first"))["status"] == "completed"
        (file,) = client.files(experiment_id("cv", "first"))
        assert sum(map(len, client.read_file(experiment_id("cv", "first"), file["id"]))) == 1 << 20


def test_an_uploader_that_was_just_started_is_named_at_the_end(
    python: Python, started_uploader: dict[str, str], until: Callable[[Callable[[], Any]], None]
) -> None:
    ended = python(LINES, HERE, env=started_uploader)
    assert "; ml-dash-syncd goes on sending; " in ended.err.splitlines()[-1]
    until(register.daemon_runs)


def test_what_a_killed_process_recorded_is_sent_by_the_uploader_it_started(
    python: Python, server: Server, started_uploader: dict[str, str], until: Callable[[Callable[[], Any]], None]
) -> None:
    ended = python(
        RECORD + """
assert experiment.wait_synced(60)
for step in range(500, 1000):
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
written = experiment.durable_state()["written"]
print(written, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        server.url, "killed", env=started_uploader, code=-9,
    )  # fmt: skip
    written = int(ended.out)
    (one,) = register.registrations()

    def proven() -> bool:
        located = at(Path(one.journal))
        assert located is not None
        if register.cursor_of(one) is None:
            return False
        with closing(connect(one)) as link:
            found = proof.prove(located, one, link)
        return found.complete and found.events >= written

    until(proven)
    assert there(server, "killed") == list(range(len(there(server, "killed"))))
    assert len(there(server, "killed")) >= written - 1


def test_a_token_that_is_not_accepted_keeps_the_data_here_whoever_is_logged_in(python: Python, server: Server) -> None:
    login.store(server.url, login.development_token("alice"), "alice")
    python(RECORD.replace('user_name="alice"', 'api_key="mld_never-issued"'), server.url, "later")
    assert once() == 3
    with pytest.raises(NotFound):
        there(server, "later")
    (refused,) = register.registrations()
    cursor = register.cursor_of(refused)
    assert cursor is not None
    assert cursor.trouble is not None
    assert "the token ending in sued" in cursor.trouble.text
