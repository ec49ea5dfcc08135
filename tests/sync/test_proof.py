"""The proof that a server has what a journal holds, against a real server that is sent exactly so much."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash import Experiment, Unauthorised, Unreachable
from ml_dash.journal.reader import Stretch, open_segment, read
from ml_dash.journal.segment import BLOBS, list_segments, read_identity
from ml_dash.projection.project import catch_up
from ml_dash.reading.located import Located, at
from ml_dash.sync import gc, login, proof, register, remote
from ml_dash.sync.identity import connect
from ml_dash.sync.proof import Proof, prove
from ml_dash.sync.register import Registration
from ml_dash.sync.remote import Link, ServerHolder
from tests.running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serving = Server(tmp_path_factory.mktemp("proof") / "data").start()
    yield serving
    serving.end()


class Sender:
    """Sends as much of a journal as it is told, as a user of its own, and has it proven."""

    def __init__(self, url: str, user: str, located: Located) -> None:
        self.located = located
        self.registration = Registration(str(located.journal), url, user)
        self.link = Link(url, login.development_token(user))
        self.journal = read_identity(located.journal).journal.hex()

    def send(self, path: Path, upto: int | None = None, start: int = 0) -> int:
        data = path.read_bytes()[start:upto]
        return remote.append_segment(self.link, self.journal, path.name, start, data)["length"]

    def send_all(self, *, contents: bool = True) -> None:
        for path in self.segments:
            self.send(path)
        if contents:
            for path in (self.located.journal / BLOBS).iterdir():
                data = path.read_bytes()
                assert remote.append_blob(self.link, self.journal, path.name, 0, len(data), data)["complete"]

    @property
    def segments(self) -> list[Path]:
        return [path for _, path in list_segments(self.located.journal)]

    def prove(self) -> Proof:
        return prove(self.located, self.registration, self.link)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name))


@pytest.fixture
def senders(server: Server, tmp_path: Path) -> Iterator[Senders]:
    with contextlib.ExitStack() as stack:
        yield Senders(server.url, tmp_path, stack)


class Senders:
    """Makes senders, each as another user, of the experiment of the test."""

    def __init__(self, url: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self._url, self._folder, self._stack = url, folder, stack
        self._count = 0

    def __call__(self) -> Sender:
        located = at(self._folder / "cv" / "first")
        assert located is not None
        self._count += 1
        sender = Sender(self._url, f"{self._folder.name} {self._count}", located)
        self._stack.callback(sender.link.close)
        return sender


def record(folder: Path, points: int = 10, files: dict[str, bytes] | None = None) -> None:
    with Experiment("first", "cv", local_path=folder) as experiment:
        for step in range(points):
            experiment.metric("loss").append(value=1 / (step + 1), step=step)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
            experiment.file(str(folder / name), prefix="/models")


# -- events ----------------------------------------------------------------------------------------------------------


def test_as_many_events_are_there_as_were_sent(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path)
    (path,) = senders().segments
    segment = open_segment(path)
    assert segment is not None
    # Where each frame ends: one is read at a time.
    ends, position = [segment.first], segment.first
    while position < path.stat().st_size:
        position = next(
            item.end for item in (next(read(segment, position, end), None) for end in range(position, 1 << 20))
            if isinstance(item, Stretch)
        )  # fmt: skip
        ends.append(position)
    assert len(ends) == 13  # opened, ten points, closed
    for events, end in list(enumerate(ends))[1::4]:
        sender = senders()
        sender.send(path, end)
        found = sender.prove()
        assert (found.events, found.events_there) == (12, events)
        assert (found.bytes, found.bytes_there) == (ends[-1], end)
        assert found.complete == (events == 12) == (found.segments_equal == 1)
        assert not found.conflicts


def test_nothing_was_sent(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path, files={"a.bin": b"a"})
    found = senders().prove()
    assert (found.events_there, found.files_there, found.segments_equal, found.bytes_there) == (0, 0, 0, 0)
    assert "unknown to the server" in found.reasons[0]


def test_more_on_the_server_than_here_is_no_difference(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path)
    sender = senders()
    sender.send_all()
    (path,) = sender.segments
    data = path.read_bytes()
    path.write_bytes(data[:-40])  # this machine's disk came back with less
    found = sender.prove()
    assert found.complete
    assert found.bytes == found.bytes_there == len(data) - 40


def test_an_end_that_a_crash_cut_off_counts_for_nothing(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path)
    sender = senders()
    sender.send_all()
    with sender.segments[0].open("ab") as file:
        file.write(b"\x30\x00\x00\x00\x01\x02")
    found = sender.prove()
    assert found.complete
    assert not found.reasons


def test_segments_are_asked_for_in_parts(senders: Senders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        record(tmp_path, points=2)
    sender = senders()
    for path in sender.segments[:4]:
        sender.send(path)
    monkeypatch.setattr(proof, "_AT_ONCE", 2)
    told: list[tuple[int, int]] = []
    found = prove(sender.located, sender.registration, sender.link, lambda done, total: told.append((done, total)))
    assert (found.events, found.events_there) == (20, 16)
    assert (found.segments, found.segments_equal) == (5, 4)
    assert told[-1] == (found.bytes, found.bytes)
    assert told == sorted(told)


@pytest.mark.parametrize("where", [0, 30, -1, 0.3, 0.7])
def test_the_first_byte_that_differs_is_named(senders: Senders, tmp_path: Path, where: float) -> None:
    record(tmp_path, points=100)
    sender = senders()
    sender.send_all()
    (path,) = sender.segments
    data = bytearray(path.read_bytes())
    at = int(where * len(data)) if isinstance(where, float) else where % len(data)
    data[at] ^= 0x40
    # A file of the same name with other bytes: the state here is what a checkpoint says.
    catch_up(sender.located)
    path.write_bytes(data)
    found = sender.prove()
    assert not found.complete
    assert found.bytes_there <= at
    if at >= 64:
        assert found.conflicts == (path.name,)
        assert f"other bytes from {at:,} on" in " ".join(found.reasons)
        assert found.bytes_there == at
        assert abs(found.events_there - found.events * at / len(data)) < found.events * 0.1 + 1


def test_nothing_is_changed_here(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path, files={"a.bin": b"a"})
    sender = senders()
    sender.send_all()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert sender.prove().complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_running_process_adds_is_never_counted_as_there(senders: Senders, tmp_path: Path) -> None:
    with Experiment("first", "cv", local_path=tmp_path) as experiment:
        experiment.metric("loss").append(value=1.0)
        experiment.parameters().get()  # all of it is in the file
        sender = senders()
        sender.send_all()
        assert sender.prove().complete
        for step in range(20):
            experiment.metric("loss").append(value=1.0, step=step)
            found = sender.prove()
            assert found.events_there <= 2
        assert not found.complete


# -- files -----------------------------------------------------------------------------------------------------------


def test_contents_are_asked_for_one_by_one(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path, files={"a.bin": b"a" * 1000, "b.bin": b"b" * 1000})
    sender = senders()
    sender.send_all(contents=False)
    found = sender.prove()
    assert (found.events_there, found.files, found.files_there) == (found.events, 2, 0)
    assert not found.complete
    assert [missing.partition(" ")[0] for missing in found.missing_files] == ["models/a.bin", "models/b.bin"]
    first, second = sorted((sender.located.journal / BLOBS).iterdir(), key=lambda path: path.read_bytes())
    remote.append_blob(sender.link, sender.journal, first.name, 0, 1000, b"a" * 1000)
    # Half of one is none.
    remote.append_blob(sender.link, sender.journal, second.name, 0, 1000, b"b" * 500)
    assert sender.prove().files_there == 1
    remote.append_blob(sender.link, sender.journal, second.name, 500, 1000, b"b" * 500)
    assert sender.prove().complete


def test_what_was_replaced_or_deleted_need_not_be_there(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path, files={"a.bin": b"first"})
    record(tmp_path, files={"a.bin": b"second", "b.bin": b"deleted"})
    with Experiment("first", "cv", local_path=tmp_path) as experiment:
        (record_of_b,) = (file for file in experiment.file().list() if file["filename"] == "b.bin")
        experiment.file(file_id=record_of_b["id"]).delete()
    sender = senders()
    sender.send_all(contents=False)
    assert (sender.prove().files, sender.prove().files_there) == (1, 0)
    for path in (sender.located.journal / BLOBS).iterdir():
        if path.read_bytes() == b"second":
            remote.append_blob(sender.link, sender.journal, path.name, 0, 6, b"second")
    assert sender.prove().complete


# -- what is known otherwise -----------------------------------------------------------------------------------------


def test_what_was_freed_here_is_proven_by_what_is_remembered(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path, files={"a.bin": b"a"})
    record(tmp_path)
    sender = senders()
    sender.send_all()
    catch_up(sender.located)
    report = gc.collect(sender.located, [ServerHolder(sender.link)])
    assert report.segments > 0
    found = sender.prove()
    assert found.complete
    assert (found.segments, found.files, found.files_there) == (2, 1, 1)
    # Another server has none of it.
    found = senders().prove()
    assert not found.complete
    assert "freed here" in " ".join(found.reasons)


def test_an_experiment_that_was_removed_there_is_not_there(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path)
    sender = senders()
    sender.send_all()
    remote.remove(sender.link, "".join(remote.find_experiment(sender.link, "cv", "first")["experiment"]))
    found = sender.prove()
    assert (found.removed, found.complete) == (True, False)
    assert "removed on the server" in " ".join(found.reasons)


def test_what_the_uploader_says_is_passed_on(senders: Senders, tmp_path: Path) -> None:
    record(tmp_path)
    sender = senders()
    register.cursors_folder().mkdir(parents=True)
    (register.cursors_folder() / f"{sender.registration.key}.json").write_text(json.dumps({
        "version": 1, "journal": sender.journal, "segments": {}, "blobs": [], "deaths": [],
        "parked": {"x.seg": "conflict at 12"}, "trouble": {"kind": "unreachable", "text": "no route", "since": 1},
    }))  # fmt: skip
    reasons = sender.prove().reasons
    assert "parked: x.seg: conflict at 12" in reasons
    assert "no route" in reasons


# -- logins ----------------------------------------------------------------------------------------------------------


def test_a_token_that_was_revoked_is_followed_by_no_other_login(server: Server) -> None:
    mark = login.remember(server.url, "mld_revoked")
    login.store(server.url, login.development_token("alice"), "alice")
    with pytest.raises(Unauthorised, match="refuses the token ending in oked"):
        connect(Registration("/nowhere", server.url, None, mark))
    with contextlib.closing(connect(Registration("/nowhere", server.url, "alice"))) as link:
        assert remote.whoami(link)["userName"] == "alice"


def test_without_a_login_or_a_server(server: Server) -> None:
    with pytest.raises(Unauthorised, match="ml-dash login"):
        connect(Registration("/nowhere", server.url))
    with pytest.raises(Unreachable):
        connect(Registration("/nowhere", "http://127.0.0.1:9", "alice"))
