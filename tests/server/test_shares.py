"""Limits of a user and of a token: what is too much is refused with a time to come again, and costs others nothing."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ml_dash import Experiment, RemoteClient
from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import BUSY
from ml_dash.errors import InvalidValue, NotFound, Unreachable
from ml_dash.server.engine.services import open_tokens
from ml_dash.server.http.limits import BURST_S, LONGEST_WAIT_S, Admission, Limited, Limiter
from ml_dash.server.settings import VARIABLES, Limits, ServerSettings, server_settings
from ml_dash.sync.login import development_token
from tests.running import Server, uploader
from tests.server.conftest import Web

NONE = Limits(0, 0, 0, 0)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(limiter: Limiter, user: str = "alice", token: str = "t") -> tuple[str, int | None]:
    with pytest.raises(Limited) as caught:
        limiter.enter(user, token)
    assert (caught.value.status, caught.value.code) == (429, BUSY)
    assert "not carried out" in caught.value.message
    return caught.value.limit, caught.value.retry_after_s


def used(limiter: Limiter, count: int, user: str = "alice", token: str = "t") -> None:
    for _ in range(count):
        limiter.enter(user, token).leave()


def test_a_burst_is_taken_and_then_the_rate(clock: Clock) -> None:
    limiter = Limiter(Limits(5, 0, 0, 0), NONE, clock)
    used(limiter, 5 * int(BURST_S))
    assert refused(limiter) == ("requests", 1)
    # One that is refused costs nothing, however often it comes: after a second there are five.
    for _ in range(1000):
        refused(limiter)
    clock.now += 1.0
    used(limiter, 5)
    assert refused(limiter) == ("requests", 1)
    # An idle user gets the burst back, and no more.
    clock.now += 1e6
    used(limiter, 5 * int(BURST_S))
    refused(limiter)


def test_one_user_costs_another_nothing_and_two_tokens_of_one_user_share(clock: Clock) -> None:
    limiter = Limiter(Limits(1, 0, 0, 0), NONE, clock)
    used(limiter, 5, "alice", "one")
    used(limiter, 5, "alice", "two")
    refused(limiter, "alice", "three")
    used(limiter, 10, "bob", "four")


def test_one_token_leaves_the_rest_to_the_others_of_its_user(clock: Clock) -> None:
    limiter = Limiter(Limits(3, 0, 0, 0), Limits(1, 0, 0, 0), clock)
    used(limiter, 10, "alice", "one")
    refused(limiter, "alice", "one")
    used(limiter, 10, "alice", "two")
    used(limiter, 10, "alice", "three")
    refused(limiter, "alice", "four")
    # A token that is refused takes nothing from its user, nor the other way round.
    clock.now += 1.0
    used(limiter, 1, "alice", "one")
    refused(limiter, "alice", "one")
    used(limiter, 2, "alice", "four")


def test_bytes_are_paced_and_who_is_in_debt_begins_no_other_request(clock: Clock) -> None:
    limiter = Limiter(Limits(0, 100, 0, 0), NONE, clock)
    first = limiter.enter("alice", "t")
    assert first.received(int(100 * BURST_S)) == 0.0
    assert first.received(50) == pytest.approx(0.5)
    # Half a second on credit is allowed, two are not.
    second = limiter.enter("alice", "t")
    assert second.received(150) == pytest.approx(2.0)
    assert refused(limiter) == ("bytes", 1)
    # However deep the debt, one that is being received is not silent for longer than a body may be.
    assert second.received(100_000) == LONGEST_WAIT_S
    assert refused(limiter) == ("bytes", 60)
    clock.now += 100_200 / 100
    assert first.received(0) == 0.0
    used(limiter, 1)


def test_open_requests_and_live_readers_are_counted_until_they_end(clock: Clock) -> None:
    limiter = Limiter(Limits(0, 0, 2, 3), NONE, clock)
    open_ones = [limiter.enter("alice", "t") for _ in range(3)]
    assert refused(limiter) == ("open", 1)
    open_ones.pop().leave()
    for admission in open_ones:
        admission.stream()
    third = limiter.enter("alice", "t")
    with pytest.raises(Limited) as caught:
        third.stream()
    assert (caught.value.limit, caught.value.retry_after_s) == ("streams", 30)
    third.leave()
    open_ones.pop().leave()
    again = limiter.enter("alice", "t")
    again.stream()
    for admission in (*open_ones, again):
        admission.leave()


def test_zero_is_no_limit(clock: Clock) -> None:
    limiter = Limiter(NONE, NONE, clock)
    admissions: list[Admission] = [limiter.enter("alice", "t") for _ in range(5000)]
    for admission in admissions:
        admission.stream()
        assert admission.received(1 << 40) == 0.0


def test_memory_follows_the_number_of_those_who_are_active(clock: Clock) -> None:
    limiter = Limiter(Limits(), Limits(), clock)
    live = limiter.enter("live", "live")
    for number in range(10_000):
        used(limiter, 1, f"user {number}", f"token {number}")
        clock.now += 0.1
    # Each has used a five-hundredth of a second, and is as good as new after it; only the last ones remain.
    assert len(limiter) < 10
    # Who has a request under way is not forgotten, however long that takes.
    live.stream()
    live.leave()
    # And in a rush within one moment everybody counts; it falls again afterwards.
    for number in range(1000):
        used(limiter, 1, f"user {number}", f"token {number}")
    assert len(limiter) >= 2000
    clock.now += 1000.0
    for number in range(1000):
        used(limiter, 1, f"other {number}", f"other {number}")
        clock.now += 1.0
    assert len(limiter) < 10


def test_a_limit_that_is_in_use_survives_a_rush_of_others(clock: Clock) -> None:
    limiter = Limiter(Limits(0, 0, 0, 1), NONE, clock)
    held = limiter.enter("alice", "t")
    for number in range(1000):
        used(limiter, 1, f"user {number}", f"token {number}")
        clock.now += 1.0
    assert refused(limiter) == ("open", 1)
    held.leave()
    used(limiter, 1)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_limits_are_set_by_variables_and_those_of_tokens_follow_those_of_users(tmp_path: Path) -> None:
    given = server_settings(data=tmp_path, env={})
    assert given.user_limits == given.token_limits == Limits(500, 200 << 20, 200, 500)
    environment = {"LIMIT_REQUESTS": "50", "LIMIT_BYTES": "10MB", "LIMIT_STREAMS": "0", "LIMIT_TOKEN_BYTES": "0"}
    given = server_settings(data=tmp_path, env=environment)
    assert given.user_limits == Limits(50, 10 << 20, 0, 500)
    assert given.token_limits == Limits(50, 0, 0, 500)


@pytest.mark.parametrize("name", sorted(name for name in VARIABLES if name.startswith("LIMIT_")))
@pytest.mark.parametrize("text", ["-1", "many", "1.5", "9" * 30])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{name} is"):
        server_settings(data=tmp_path, env={name: text})


# -- the uploader ----------------------------------------------------------------------------------------------------


def test_a_real_uploader_waits_as_it_is_told_and_everything_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight experiments need more requests than the burst of two a second has; nothing is lost or doubled."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    with open_tokens(ServerSettings(tmp_path / "data")) as tokens:
        _, token = tokens.create_token("eve", read_only=True, read_all=True)
    with limited(tmp_path, LIMIT_REQUESTS="2", LIMIT_BYTES="1MB") as (server, _):
        for number in range(8):
            run = Experiment(f"run {number}", "p", local_path=tmp_path / "store", remote=server.url, user_name="carol")
            with run.open() as experiment:
                for step in range(100):
                    experiment.metric("loss").append(value=float(step))
                (tmp_path / "weights.bin").write_bytes(os.urandom(100_000 + number))
                experiment.file(tmp_path / "weights.bin")
        # Who looks does it with a name of their own: looking costs, too.
        with uploader(), RemoteClient(server.url, api_key=token, namespace="carol") as watcher:
            deadline = time.monotonic() + 90
            for number in range(8):
                identity = experiment_id("p", f"run {number}")
                while not _is_whole(watcher, identity, 100_000 + number):
                    assert time.monotonic() < deadline
                    threading.Event().wait(1.0)
        bob = Web(server.url, development_token("bob"))
        with bob.session:
            refusals = re.search(r'ml_dash_limited_total\{limit="requests"\} (\S+)', bob.ask("GET", "/metrics").text)
        assert refusals is not None
        assert float(refusals[1]) >= 1


def _is_whole(watcher: RemoteClient, identity: str, size: int) -> bool:
    """True once the 100 points and the file of an experiment are there, each once."""
    try:
        points, files = watcher.points(identity, "loss")["data"], watcher.files(identity)
    except (NotFound, Unreachable):
        return False
    if len(points) < 100 or not files or files[0].get("pending"):
        return False
    assert [point["data"]["value"] for point in points] == [float(step) for step in range(100)]
    assert [file["sizeBytes"] for file in files] == [size]
    return True


# -- over HTTP --------------------------------------------------------------------------------------------------------


@contextmanager
def limited(folder: Path, **variables: str) -> Iterator[tuple[Server, Web]]:
    """A server with limits of its own, and Alice."""
    server = Server(folder / "data", variables).start()
    try:
        web = Web(server.url, development_token("alice"))
        with web.session:
            yield server, web
    finally:
        server.end()


@contextmanager
def following(web: Web, path: str) -> Iterator[Iterator[bytes]]:
    """The bytes of a stream. It ends with its iterator, so keep that."""
    with web.session.get(web.url + path, stream=True, timeout=20) as stream:
        assert stream.status_code == 200
        yield stream.iter_content(1)


def test_too_many_requests_are_refused_in_the_form_of_all_errors(tmp_path: Path) -> None:
    with limited(tmp_path, LIMIT_REQUESTS="1") as (server, web):
        answers = [web.session.get(f"{server.url}/whoami", timeout=30) for _ in range(30)]
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        last = next(answer for answer in answers if answer.status_code == 429)
        assert last.headers["Retry-After"] == "1"
        assert last.headers["X-ML-Dash-Protocol"] == "1"
        assert last.json()["error"]["code"] == "busy"
        assert "alice" in last.json()["error"]["message"]
        # Others go on, and monitoring without a login is never limited.
        bob = Web(server.url, development_token("bob"))
        with bob.session:
            text = bob.ask("GET", "/metrics").text
        assert 'ml_dash_limited_total{limit="requests"}' in text
        for _ in range(30):
            Web(server.url, None).ask("GET", "/health")


def test_a_live_reader_too_many_is_refused_and_a_place_becomes_free(tmp_path: Path) -> None:
    with limited(tmp_path, LIMIT_STREAMS="2") as (server, web), ExitStack() as readers:
        path = f"/experiments/{web.experiment('followed')}/events"
        kept = [readers.enter_context(following(web, path)) for _ in range(2)]
        for stream in kept:
            next(stream)
        other = Web(server.url, development_token("alice"))
        with other.session:
            with other.session.get(server.url + path, stream=True, timeout=20) as answer:
                assert (answer.status_code, answer.headers["Retry-After"]) == (429, "30")
            readers.close()
            deadline = time.monotonic() + 20
            while (answer := other.session.get(server.url + path, stream=True, timeout=20)).status_code == 429:
                assert time.monotonic() < deadline
                threading.Event().wait(0.02)
            assert answer.status_code == 200
            answer.close()


def test_a_large_upload_is_slowed_down_and_arrives_whole(tmp_path: Path) -> None:
    """Ten seconds' worth of bytes come at once; the rest takes its time."""
    with limited(tmp_path, LIMIT_BYTES="1MB") as (_, web):
        path = f"/experiments/{web.experiment('uploads')}/files"
        content = os.urandom(11 << 20)
        began = time.monotonic()
        record = web.ask("POST", path, files={"file": ("weights.bin", content)}).json()
        assert time.monotonic() - began > 0.9
        assert web.ask("GET", f"{path}/{record['id']}/download").content == content


def test_one_that_is_refused_may_still_send_its_body(tmp_path: Path) -> None:
    with limited(tmp_path, LIMIT_OPEN="1") as (server, web):
        path = f"/experiments/{web.experiment('open')}"
        with following(web, f"{path}/events") as events:
            next(events)
            host, _, port = server.url.rpartition("/")[2].rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            body = b'{"data": {"x": "' + b"x" * (4 << 20) + b'"}}'
            headers = {"Authorization": str(web.session.headers["Authorization"]), "Content-Type": "application/json"}
            connection.request("POST", f"{path}/parameters", body, headers)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Retry-After")) == (429, "1")
            answer.read()
            connection.close()
