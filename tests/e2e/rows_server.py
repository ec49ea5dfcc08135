"""Rows S1, S3, S4 and S13: the server killed under load, repeated batches, what contradicts, other versions."""

from __future__ import annotations

import random
import socket
from typing import Any, Final

from tests.crash import oracle_reader as disk
from tests.faults.harness import Row, Trial

from . import servers
from .asking import Address, Client, login
from .judge import judge
from .load import Loader, Poster, Promises, Shipper, loading
from .pens import UNKNOWN_KIND, WriterFixture, make_place
from .servers import Server, serve
from .world import World, site, world

KILLS: Final = 8
POINTS: Final = ("ingest-before-commit", "ingest-after-commit", "blob-staged", "blob-stored")


def killed_under_load(trial: Trial) -> None:
    """S1. Killed again and again while clients send; whatever was answered 200 is there after each start."""
    shared: World = trial.shared
    rng = trial.rng
    promises = Promises()
    with site(trial) as here:
        shippers = [Shipper(here.pen(), promises, random.Random(rng.random())) for _ in range(2)]
        poster = Poster(here.project, "by-rest", promises, random.Random(rng.random()))
        loaders: list[Loader] = [*shippers, poster]
        server: Server | None = None
        try:
            for _ in range(KILLS):
                fail = f"{rng.choice(POINTS)}:{rng.randrange(1, 30)}:kill" if rng.random() < 0.5 else ""
                server = serve(shared.zygote, trial.folder, env={"ML_DASH_FAIL": fail} if fail else {})
                server.wait_ready()
                trial.fail(*promises.check(server.port))
                if trial.problems:
                    return
                with loading(server.port, loaders):
                    # A request takes about so much longer there.
                    longest = 1.0 if servers.other_stores is not None else 0.08
                    if server.process.exited(rng.uniform(0, longest) if not fail else max(0.3, longest)):
                        trial.counts["killed at a fail point"] += 1
                    server.kill()
                trial.counts["kills"] += 1
            server = serve(shared.zygote, trial.folder).wait_ready()
            trial.fail(*promises.check(server.port), *promises.unexpected[:3])
            trial.counts["promises"] += promises.count
            with Client(server.port) as client:
                for shipper in shippers:
                    shipper.pen.close()
                    shipper.finish(client)
            for pen in here.pens:
                trial.fail(*judge(server.port, [pen.place], [pen]))
        finally:
            if server is not None:
                server.kill()


# -- S3 --------------------------------------------------------------------------------------------------------------


def _raw_post(address: Address, path: str, body: bytes, token: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nX-ML-Dash-Protocol: 1\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


BATCHES: Final = 12


def many_times_at_once(trial: Trial) -> None:
    """S3. The same batch 2 to 64 times at the same moment: one effect, one answer."""
    shared: World = trial.shared
    rng = trial.rng
    copies = rng.choice((2, 3, 4, 8, 16, 64))
    token = login()
    address = shared.server.address
    with site(trial) as here:
        pen = here.pen()
        sockets = [socket.create_connection(address, 20) for _ in range(copies)]
        try:
            sent = 0
            for _ in range(BATCHES):
                for _ in range(rng.randrange(1, 8)):
                    pen.any(rng, files=False)
                data = pen.path.read_bytes()
                # Sometimes some of it is known already, sometimes not the same part for all.
                offset = sent if rng.random() < 0.7 else rng.choice((0, sent))
                path = f"/sync/v1/journals/{pen.place.identity.hex()}/segments/{pen.path.name}?offset={offset}"
                request = _raw_post(address, path, data[offset:], token)
                for each in sockets:
                    each.sendall(request)
                answers = {_answer_of(each) for each in sockets}
                trial.check(len(answers) == 1, f"{copies} times the same batch: {sorted(answers)[:3]}")
                ok = all(status == 200 and f'"length":{len(data)}' in text.replace(" ", "") for status, text in answers)
                trial.check(ok, f"a batch up to byte {len(data)} was answered {sorted(answers)[:3]}")
                sent = len(data)
                trial.counts["requests"] += copies
                trial.counts["batches"] += 1
        finally:
            for each in sockets:
                each.close()
        pen.close()
        with Client(address) as client:
            Shipper(pen, Promises(), rng).finish(client)
        trial.fail(*judge(address, here.places, here.pens))


def _answer_of(connection: socket.socket) -> tuple[int, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return 0, "the connection ended"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head[9:12]), body.decode()


# -- S4 --------------------------------------------------------------------------------------------------------------


class Bench:
    """One journal on the server, and requests that should not be."""

    def __init__(self, trial: Trial, client: Client, pen: WriterFixture) -> None:
        self.trial, self.client, self.pen = trial, client, pen
        self.ends: list[int] = [pen.size]
        for _ in range(trial.rng.randrange(6, 20)):
            pen.any(trial.rng, files=False)
            self.ends.append(pen.size)
        self.data = pen.path.read_bytes()

    def post(self, offset: int, data: bytes, **params: Any) -> tuple[int, dict[str, Any]]:
        """Bytes at an offset: status and JSON."""
        answer = self.client.post_segment(self.pen.place.identity.hex(), self.pen.path.name, offset, data, **params)
        return answer.status, answer.json()

    def expect(self, what: str, found: tuple[int, dict[str, Any]], status: int, **fields: Any) -> None:
        """The answer must be that."""
        code = found[1].get("error", {}).get("code")
        got = {key: code if key == "code" else found[1].get(key) for key in fields}
        good = found[0] == status and got == fields
        self.trial.check(good, f"{what}: {found[0]} {str(found[1])[:200]}, expected {status} {fields}")

    def some_end(self, low: int = 0, high: int = -1) -> int:
        """The end of some frame."""
        return self.trial.rng.choice(self.ends[low:high])


def _gap(b: Bench) -> None:
    first = b.some_end(0, -2)
    b.expect("the first part", b.post(0, b.data[:first]), 200, length=first)
    later = b.trial.rng.choice([end for end in b.ends[:-1] if end > first])
    b.expect("a gap", b.post(later, b.data[later:]), 409, code="gap", length=first)
    b.expect("the rest", b.post(first, b.data[first:]), 200, length=len(b.data))


def _gap_at_the_start(b: Bench) -> None:
    at = b.some_end()
    status, found = b.post(at, b.data[at:])
    b.trial.check(status in (404, 409), f"a segment that begins at byte {at}: {status} {found}")
    b.expect("all", b.post(0, b.data), 200, length=len(b.data))


def _overlap(b: Bench) -> None:
    first = b.some_end()
    b.expect("the first part", b.post(0, b.data[:first]), 200, length=first)
    back = b.trial.rng.choice([0, *[end for end in b.ends if end <= first]])
    b.expect("an overlap", b.post(back, b.data[back:]), 200, length=len(b.data))
    b.expect("all again", b.post(0, b.data), 200, length=len(b.data))


def _conflict(b: Bench) -> None:
    """Other valid frames at the same offset: the first are kept, 409."""
    first = b.some_end(1)
    b.expect("the first part", b.post(0, b.data[:first]), 200, length=first)
    other = disk.read_bytes(b.data)
    frame = b.trial.rng.choice([f for f in other.frames if f.end <= first])
    header = b.data[: other.header.size] if other.header else b""
    forged = disk.make_frame(header, frame.seq, frame.kind, frame.time_ns, _changed(frame.body))
    if len(forged) != frame.end - frame.start:
        b.trial.counts["no forgery of that length"] += 1
    status, found = b.post(frame.start, forged)
    b.trial.check(status == 409, f"another frame at {frame.start}: {status} {found}")
    b.expect("another frame", (status, found), 409, code="conflict", offset=frame.start)
    b.expect("the rest", b.post(first, b.data[first:]), 200, length=len(b.data))


def _changed(body: Any) -> Any:
    """The same length, another value."""
    if isinstance(body, str) and body:
        return ("b" if body[0] == "a" else "a") + body[1:]
    if isinstance(body, float):
        return body + 1.0
    if isinstance(body, list):
        return [*body[:-1], _changed(body[-1])] if _changed(body[-1]) != body[-1] else [_changed(b) for b in body]
    if isinstance(body, dict):
        return {key: _changed(value) for key, value in body.items()}
    return body


def _torn(b: Bench) -> None:
    cut = b.trial.rng.randrange(len(b.data))
    header = disk.read_bytes(b.data).header
    # A header without frames is whole, too.
    ends = [0, *([header.size] if header is not None else []), *b.ends]
    whole = max(end for end in ends if end <= cut)
    status, found = b.post(0, b.data[:cut])
    if cut not in ends:
        b.trial.check(status in (200, 422), f"a torn batch: {status} {found}")
        if status == 422:
            b.expect("a torn batch", (status, found), 422, code="torn", offset=whole)
        else:
            b.expect("a torn batch", (status, found), 200, length=whole)
    elif cut:
        b.expect("a batch that ends with a frame", (status, found), 200, length=cut)
    b.expect("all", b.post(0, b.data), 200, length=len(b.data))


def _flipped(b: Bench) -> None:
    """A bit changes under way: never stored as a frame."""
    at = b.trial.rng.randrange(len(b.data))
    bad = b.data[:at] + bytes([b.data[at] ^ (1 << b.trial.rng.randrange(8))]) + b.data[at + 1 :]
    status, found = b.post(0, bad)
    b.trial.check(400 <= status < 500, f"bytes with a flipped bit at {at}: {status} {found}")
    b.expect("all", b.post(0, b.data), 200, length=len(b.data))


def _gap_in_numbers(b: Bench) -> None:
    """A number is skipped: kept, and filled by a later segment."""
    pen = b.pen
    missing, body = pen.seq, ["info", "came later", None]
    time_ns = pen.tick()
    pen.seq += 1
    pen.log("after the gap")
    b.expect("with a gap in numbers", b.post(0, pen.path.read_bytes()), 200, length=pen.size)
    pen.roll()
    pen.raw(pen.encoded(disk.LOG, body, seq=missing, time_ns=time_ns))
    pen.issued[pen.writer.hex(), missing] = (disk.LOG, time_ns, body)
    b.expect("the filling segment", b.post(0, pen.path.read_bytes()), 200, length=pen.size)


def _other_header(b: Bench) -> None:
    """The bytes of one segment under the name of another, or of another journal."""
    other = WriterFixture(b.pen.place, locked=False)
    journal = b.pen.place.identity.hex()
    answer = b.client.post_segment(journal, other.path.name, 0, b.data)
    b.trial.check(400 <= answer.status < 500, f"a segment under another's name: {answer.status} {answer.body[:200]!r}")
    answer = b.client.post_segment("00" * 16, b.pen.path.name, 0, b.data)
    b.trial.check(400 <= answer.status < 500, f"a segment in another journal: {answer.status} {answer.body[:200]!r}")
    other.die()
    other.path.unlink()
    b.expect("all", b.post(0, b.data), 200, length=len(b.data))


def _damaged(b: Bench) -> None:
    """Bytes marked as damage are kept as they are; what verifies may take their place."""
    other = disk.read_bytes(b.data)
    frame = b.trial.rng.choice(other.frames[1:])
    bad = b.data[: frame.start] + bytes(frame.end - frame.start) + b.data[frame.end :]
    found = b.post(0, bad, damaged=f"{frame.start}-{frame.end}")
    b.expect("with damage", found, 200, length=len(b.data))
    b.expect("put right", b.post(frame.start, b.data[frame.start : frame.end]), 200, length=len(b.data))


CASES: Final = (
    _gap, _gap_at_the_start, _overlap, _conflict, _torn, _flipped, _gap_in_numbers, _other_header, _damaged,
)  # fmt: skip


def contradictions(trial: Trial) -> None:
    """S4. Gaps, overlaps, contradictions, torn and changed bytes: refused exactly, and nothing is the worse for it."""
    shared: World = trial.shared
    case = CASES[trial.index % len(CASES)]
    trial.counts[case.__name__.strip("_").replace("_", " ")] += 1
    with site(trial) as here, shared.client() as client:
        pen = here.pen()
        case(Bench(trial, client, pen))
        trial.fail(*judge(shared.server.port, here.places, here.pens, in_order=case is not _damaged))


# -- S13 -------------------------------------------------------------------------------------------------------------


def other_versions(trial: Trial) -> None:
    """S13. Kinds that nobody knows yet are kept and passed on; newer protocols and formats are refused, clearly."""
    shared: World = trial.shared
    with site(trial) as here, shared.client() as client:
        pen = here.pen()
        for _ in range(trial.rng.randrange(3, 12)):
            pen.any(trial.rng, files=False)
            if trial.rng.random() < 0.5:
                pen.unknown(trial.rng.choice(({"a": [1, None]}, "text", 7, ["x"] * 9, None)))
        pen.close()
        kinds = [event[0] for event in pen.issued.values()]
        trial.counts["unknown events"] += kinds.count(UNKNOWN_KIND)
        data = pen.path.read_bytes()
        _newer_format(trial, client, here.store / "newer")
        protocol = trial.rng.choice(("1", "1", "2", "99", "", "x"))
        path = f"/sync/v1/journals/{pen.place.identity.hex()}/segments/{pen.path.name}?offset=0"
        answer = client.ask("POST", path, data, headers={"X-ML-Dash-Protocol": protocol})
        trial.counts[f"protocol {protocol or 'unnamed'}: {answer.status}"] += 1
        trial.check(answer.status == 200 or (protocol != "1" and 400 <= answer.status < 500), f"{answer.status}")
        if answer.status != 200:
            here.drain(f"http://127.0.0.1:{shared.server.port}")
        trial.fail(*judge(shared.server.port, here.places, here.pens))


def _newer_format(trial: Trial, client: Client, folder: Any) -> None:
    place = make_place(folder, f"newer-{trial.index}-{trial.rng.random()}", "run")
    pen = WriterFixture(place, locked=False)
    data = bytearray(pen.path.read_bytes())
    pen.die()
    data[8] = 9
    answer = client.post_segment(place.identity.hex(), pen.path.name, 0, bytes(data))
    trial.check(400 <= answer.status < 500, f"a segment of format 9: {answer.status} {answer.body[:200]!r}")
    trial.check(client.journal(place.identity.hex()) is None, "something of a segment of format 9 was kept")


ROWS = (
    Row("S1", "the server is killed under load", 625, 5, killed_under_load, world,
        unit=f"{KILLS} kills each"),
    Row("S3", "the same batch 2 to 64 times at once", 1_700, 8, many_times_at_once, world,
        unit=f"{BATCHES} batches each"),
    Row("S4", "gaps, overlaps, contradictions, torn and changed bytes", 10_000, 90, contradictions, world),
    Row("S13", "unknown kinds, other protocols, newer formats", 400, 12, other_versions, world),
)  # fmt: skip
