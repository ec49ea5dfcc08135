"""Live readers: told of changes, of a removal and of the end, counted, and forgotten when they go."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest

from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import Refused
from ml_dash.server.http import stream as live
from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web
from tests.server.sending import SegmentBytes


@contextmanager
def following(web: Web, identity: str, **headers: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The events of a stream: (kind, data)."""
    path = f"{web.url}/experiments/{identity}/events"
    # Less than the server's heartbeats are apart: an event that does not come ends the test.
    with web.session.get(path, stream=True, timeout=14, headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        yield events_of(stream.iter_lines(chunk_size=1, decode_unicode=True))


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def listeners(web: Web) -> float:
    lines = web.ask("GET", "/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("ml_dash_listeners ")))


def test_a_removal_ends_the_stream(web: Web) -> None:
    identity = web.experiment("removed")
    with following(web, identity) as events:
        assert next(events)[0] == "change"
        Web(web.url, str(web.session.headers["Authorization"])[7:]).ask("DELETE", f"/sync/v1/experiments/{identity}")
        assert next(events) == ("removed", {"experiment": identity})
        assert list(events) == []


def test_a_status_given_by_rest_holds_at_once_after_a_server_was_killed(tmp_path: Path) -> None:
    """What the killed server had begun to write has no end, and must not keep the experiment running."""
    server = Server(tmp_path / "data").start()
    web = Web(server.url, development_token("alice"))
    web.experiment("given", "p")
    server.end(signal.SIGKILL)
    server.start()
    web = Web(server.url, development_token("alice"))
    ended = web.post("/projects/p/experiments", {"name": "given", "status": "completed"})["experiment"]
    assert (ended["status"], ended["writersTotal"], ended["writersRunning"]) == ("completed", 2, 0)
    web.session.close()
    server.end()


def test_a_writer_that_is_found_dead_is_told(web: Web) -> None:
    sheet = SegmentBytes(4711, journal=4711, project="web", name="dead").opens().log("one")
    path = f"/sync/v1/journals/{sheet.journal}"
    web.ask("POST", f"{path}/segments/{sheet.file}?offset=0", data=sheet.data)
    identity = experiment_id("web", "dead")
    with following(web, identity) as events:
        assert next(events) == ("change", {"experiment": identity, "events": 2})
        note = {"writer": sheet.writer, "segment": sheet.id, "end": len(sheet.data)}
        web.ask("POST", f"{path}/deaths", json={"deaths": [note]})
        assert next(events) == ("change", {"experiment": identity, "events": 3})
    assert web.get(f"/experiments/{identity}")["status"] == "interrupted"


def test_one_that_was_begun_anew_at_once_was_removed_all_the_same() -> None:
    import asyncio

    async def scene() -> None:
        hub = live.Hub()
        hub.start()
        old = hub.join("ns", "1")
        hub.changed("ns", "1", 7)
        hub.changed("ns", "1", None)
        hub.changed("ns", "1", 1)
        await asyncio.sleep(0)
        assert old.removed
        # What was not asked for is not kept.
        hub.changed("ns", "2", 1)
        hub.leave("ns", "1", old)
        assert hub.count == 0
        after = hub.join("ns", "1")
        hub.changed("ns", "1", 2)
        await asyncio.sleep(0)
        assert (after.removed, after.events) == (False, 2)

    asyncio.run(scene())


def test_who_knows_the_number_is_told_the_next_one(web: Web) -> None:
    identity = web.experiment("known")
    path = f"/experiments/{identity}/logs"
    with following(web, identity) as events:
        _, data = next(events)
    with following(web, identity, **{"Last-Event-ID": str(data["events"])}) as events:
        web_of_other = Web(web.url, development_token("alice"))
        web_of_other.post(path, {"logs": [{"message": "one"}]})
        web_of_other.session.close()
        assert next(events) == ("change", {"experiment": identity, "events": data["events"] + 1})
    # What is no number of ours counts for nothing.
    with following(web, identity, **{"Last-Event-ID": "x" * 100}) as events:
        assert next(events)[1]["events"] == data["events"] + 1


def test_who_goes_is_forgotten(web: Web) -> None:
    identity = web.experiment("gone")
    before = listeners(web)
    readers = [following(web, identity) for _ in range(3)]
    for reader in readers:
        next(reader.__enter__())
    for reader in readers:
        reader.__exit__(None, None, None)
    deadline = monotonic() + 20
    while listeners(web) > before:
        assert monotonic() < deadline
        Event().wait(0.02)
    web.refused("GET", "/experiments/1/events", 404, "unknown")
    assert web.ask("HEAD", f"/experiments/{identity}/events").content == b""
    assert listeners(web) <= before


def test_only_so_many_may_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS", 2)
    hub = live.Hub()
    first, _ = hub.join("a", "1"), hub.join("a", "2")
    with pytest.raises(Refused) as caught:
        hub.join("a", "3")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30)
    hub.leave("a", "1", first)
    hub.join("a", "3")


def test_the_end_of_the_server_ends_streams_and_lets_downloads_finish(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    web = Web(server.url, development_token("alice"))
    identity = web.experiment("ending")
    content = bytes(range(256)) * (64 << 10)  # 16 MiB: more than sockets hold
    record = web.ask("POST", f"/experiments/{identity}/files", files={"file": ("large.bin", content)}).json()
    path = f"{server.url}/experiments/{identity}/files/{record['id']}/download"
    told: list[Any] = []

    def follow() -> None:
        other = Web(server.url, development_token("alice"))
        with following(other, identity) as events:
            told.append(next(events))
            half.set()
            told.extend(events)
        told.append("ended")
        other.session.close()

    half = threading.Event()
    follower = threading.Thread(target=follow)
    follower.start()
    assert half.wait(20)
    with web.session.get(path, stream=True, timeout=30) as download:
        blocks = download.iter_content(1 << 20)
        had = next(blocks)
        ender = threading.Thread(target=server.end, args=(signal.SIGTERM,))
        ender.start()
        follower.join(20)
        assert told[-1] == "ended"
        had += b"".join(blocks)
    assert had == content
    ender.join(30)
    assert not ender.is_alive()
    web.session.close()
