"""Rows S5, S6, S8, S9 and S10: who may, how much, and what a path, a name or a file may do."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import random
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.faults.harness import Row, Trial

from .asking import Address, Answer, Client, claims, jwt
from .judge import judge
from .load import Promises, Shipper
from .pens import WriterFixture
from .world import World, site, world

# -- S5 --------------------------------------------------------------------------------------------------------------


def _unsigned(_: World, __: Trial) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims('alice'))}."


def _rs(_: World, __: Trial) -> str:
    """Signed with HMAC under what an RSA verifier would take for its public key."""
    return jwt(claims("alice"), b"-----BEGIN PUBLIC KEY-----", alg="RS256")


def _changed(_: World, trial: Trial) -> str:
    good = jwt(claims("alice"))
    at = trial.rng.randrange(len(good) - 2)
    other = trial.rng.choice([c for c in "abcdefghABCDEFGH0123456789" if c != good[at]])
    return good[:at] + other + good[at + 1 :]


def _wrong_id(_: World, __: Trial) -> str:
    return jwt(claims("alice") | {"userId": "1"})


TOKENS: Final[dict[str, Callable[[World, Trial], str]]] = {
    "none": lambda _w, _t: "",
    "a wrong one": lambda _w, t: base64.urlsafe_b64encode(t.rng.randbytes(t.rng.randrange(1, 60))).decode(),
    "expired": lambda _w, _t: jwt(claims("alice", now=time.time() - 40 * 86_400)),
    "expired a moment ago": lambda _w, _t: jwt(claims("alice") | {"exp": int(time.time()) - 2}),
    "not yet valid": lambda _w, _t: jwt(claims("alice", now=time.time() + 86_400)),
    "never expires": lambda _w, _t: jwt({k: v for k, v in claims("alice").items() if k != "exp"}),
    "times that are no numbers": lambda _w, _t: jwt(claims("alice") | {"exp": "never", "iat": None}),
    "alg none": _unsigned,
    "another algorithm": _rs,
    "an empty key": lambda _w, _t: jwt(claims("alice"), b""),
    "another key": lambda _w, t: jwt(claims("alice"), t.rng.randbytes(32)),
    "a changed one": _changed,
    "another user's id": _wrong_id,
    "no user": lambda _w, _t: jwt(claims("") | {"userName": ""}),
    "huge": lambda _w, _t: "A" * 60_000,
    "a user named like a path": lambda _w, _t: jwt(claims("../../alice") | {"userName": "../alice"}),
}


def not_let_in(trial: Trial) -> None:
    """S5. Whoever is not let in learns nothing and writes nothing; no token is in the server's log."""
    shared: World = trial.shared
    name = list(TOKENS)[trial.index % len(TOKENS)]
    trial.counts[name] += 1
    with site(trial) as here, shared.client() as good:
        pen = here.pen()
        pen.any(trial.rng, files=False)
        data = pen.path.read_bytes()
        journal = pen.place.identity.hex()
        trial.check(good.post_segment(journal, pen.path.name, 0, data).status == 200, "the good token was refused")
        state = good.journal(journal)
        assert state is not None
        token = TOKENS[name](shared, trial)
        calls = _calls(pen, state["experiment"], data)
        with shared.client(token=token) as bad:
            for method, path, body in trial.rng.sample(calls, 8):
                try:
                    answer = bad.ask(method, path, body)
                except OSError:
                    continue  # so large a head is cut off
                allowed = (401, 403, 431, 400) if name == "huge" else (401, 403)
                told = f"{method} {path} with a token that is {name}: {answer.status} {answer.body[:120]!r}"
                trial.check(answer.status in allowed, told)
                trial.check(pen.place.project.encode() not in answer.body, "it was told what there is")
        if name == "none":
            _in_the_query(trial, shared, journal)
        _no_leak(trial, shared, token, journal)
        pen.close()
        Shipper(pen, Promises(), trial.rng).finish(good)
        trial.fail(*judge(shared.server.port, here.places, here.pens))
        log = shared.server.process.told()
        trial.check(good.token not in log, "the good token is in the server's log")
        trial.check(len(token) < 20 or token not in log, "the bad token is in the server's log")


def _calls(pen: WriterFixture, experiment: str, data: bytes) -> list[tuple[str, str, bytes | None]]:
    journal = pen.place.identity.hex()
    base = f"/sync/v1/journals/{journal}"
    blob = f"{'0' * 64}-{'0' * 32}-0"
    return [
        ("GET", base, None),
        ("POST", f"{base}/segments/{pen.path.name}?offset=0", data),
        ("POST", f"{base}/deaths", b'{"deaths": []}'),
        ("POST", f"{base}/digests", b'{"segments": {}}'),
        ("PUT", f"{base}/blobs/{blob}?offset=0&size=1", b"x"),
        ("GET", f"{base}/blobs/{blob}/state", None),
        ("GET", f"/sync/v1/segments/{pen.segment.hex()}", None),
        ("GET", f"/sync/v1/experiments/{experiment}/order", None),
        ("GET", f"/sync/v1/experiments/{experiment}/base", None),
        ("DELETE", f"/sync/v1/experiments/{experiment}", None),
        ("POST", f"/projects/{pen.place.project}/experiments", b'{"name": "run"}'),
        ("POST", f"/experiments/{experiment}/logs", b'{"logs": [{"message": "no"}]}'),
        ("POST", f"/experiments/{experiment}/parameters", b'{"data": {"no": 1}}'),
        ("GET", f"/experiments/{experiment}/parameters", None),
        ("GET", f"/experiments/{experiment}/files", None),
        ("GET", f"/experiments/{experiment}/metrics", None),
        ("POST", f"/experiments/{experiment}/metrics/loss/append", b'{"data": {"value": 1}}'),
        ("GET", f"/experiments/{experiment}/logs", None),
    ]


def _in_the_query(trial: Trial, shared: World, journal: str) -> None:
    """A token in the query string is no token."""
    good = jwt(claims("alice"))
    with shared.client(token="") as client:
        for name in ("token", "access_token", "api_key", "authorization"):
            answer = client.ask("GET", f"/sync/v1/journals/{journal}", params={name: good})
            trial.check(answer.status == 401, f"a token in the query as {name}: {answer.status}")


def _no_leak(trial: Trial, shared: World, token: str, journal: str) -> None:
    """What is there and what is not there look the same."""
    if len(token) > 4096:
        return
    with shared.client(token=token) as bad:
        there = bad.ask("GET", f"/sync/v1/journals/{journal}")
        not_there = bad.ask("GET", f"/sync/v1/journals/{trial.rng.randbytes(16).hex()}")
        trial.check((there.status, there.body) == (not_there.status, not_there.body), "existence shows")


# -- S6 --------------------------------------------------------------------------------------------------------------


def _exchange(address: Address, data: bytes, timeout: float = 10.0) -> Answer | None:
    """Bytes as they are; the first answer, None where the connection just ends."""
    assert not isinstance(address, int)
    with socket.create_connection(address, timeout) as made:
        with contextlib.suppress(OSError):
            made.sendall(data)
        got = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in got:
                more = made.recv(65536)
                if not more:
                    break
                got += more
        if not got:
            return None
        return Answer(int(got[9:12]), {}, got.partition(b"\r\n\r\n")[2])


def _head(method: str, path: str, *lines: str, token: str | None = None) -> bytes:
    token = jwt(claims("alice")) if token is None else token
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines]
    if token:
        head.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(head) + "\r\n\r\n").encode()


LIMIT: Final = 8 << 20


def _bombs(rng: random.Random) -> dict[str, tuple[list[str], bytes]]:
    """Name → (lines of the head, body): each a body that must not be taken."""
    zeros = gzip.compress(bytes(64 << 20), 9)
    deep = b"[" * 100_000
    length = "Content-Length: {}"

    def sized(body: bytes, *more: str) -> tuple[list[str], bytes]:
        return [length.format(len(body)), *more], body

    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    return {
        "gzip bomb": sized(zeros, "Content-Encoding: gzip"),
        "nested gzip": sized(gzip.compress(zeros), "Content-Encoding: gzip, gzip"),
        "many gzip members": sized(zeros + zeros, "Content-Encoding: gzip"),
        "not gzip at all": sized(rng.randbytes(999), "Content-Encoding: gzip"),
        "cut gzip": sized(zeros[:5000], "Content-Encoding: gzip"),
        "deflate": sized(zlib.compress(bytes(1000)), "Content-Encoding: deflate"),
        "unknown encoding": sized(b"x" * 10, "Content-Encoding: zstd"),
        "length beyond the limit": ([length.format(10 << 30)], b"x" * 1000),
        "endless chunks": (["Transfer-Encoding: chunked"], chunk * 400),
        "bad chunk": (["Transfer-Encoding: chunked"], b"zz\r\nxx\r\n0\r\n\r\n"),
        "negative length": ([length.format(-1)], b""),
        "length that is no number": ([length.format("ten")], b"0123456789"),
        "two lengths": ([length.format(3), length.format(30)], b"abc"),
        "length and chunks": ([length.format(3), "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        "deep JSON": sized(deep, "Content-Type: application/json"),
        "deep JSON objects": sized(b'{"a":' * 100_000, "Content-Type: application/json"),
        "not UTF-8": sized(b'{"name": "\xff\xfe"}', "Content-Type: application/json"),
        "a lone surrogate": sized(b'{"name": "\\ud800"}', "Content-Type: application/json"),
        "no JSON": sized(b"{", "Content-Type: application/json"),
        "random JSON": sized(rng.randbytes(300), "Content-Type: application/json"),
        "JSON of another shape": sized(b'["name"]', "Content-Type: application/json"),
        "many fields": sized(
            b'{"name": "x", "metadata": {' + b",".join(b'"k%d": 1' % n for n in range(400_000)) + b"}}",
            "Content-Type: application/json",
        ),
    }


_MAY_PASS: Final = frozenset(("deflate",))


def too_much(trial: Trial) -> None:
    """S6. Bodies of every bad kind: 4xx, and no more memory than the limit."""
    shared: World = trial.shared
    server = shared.server
    bombs = _bombs(trial.rng)
    name = list(bombs)[trial.index % len(bombs)]
    lines, body = bombs[name]
    trial.counts[name] += 1
    with shared.client() as client:
        client.ask("GET", "/health")
        journal, segment = trial.rng.randbytes(16).hex(), f"{5:020d}-{trial.rng.randbytes(16).hex()}-000000.seg"
        paths = (f"/sync/v1/journals/{journal}/segments/{segment}?offset=0", "/projects/too-much/experiments")
        pid = server.process.pid
        for path in paths:
            for token in (None, ""):
                before = _memory(pid)
                answer = _exchange(server.address, _head("POST", path, *lines, token=token) + body)
                status = 0 if answer is None else answer.status
                good = 400 <= status < 500 or (status == 0 and answer is None)
                trial.check(good, f"{name} to {path.split('/')[1]}: {status}")
                if token == "":
                    trial.check(status in (0, 400, 401, 413, 415, 408), f"{name} without a token: {status}")
                grown = _memory(pid) - before
                trial.check(grown < LIMIT * 4, f"{name}: memory grew by {grown >> 20} MB")
        trial.check(client.journal(journal) is None, f"something of {name} was kept")
        trial.check(client.ask("GET", "/health").status == 200, "the server is not well any more")


def _memory(pid: int) -> int:
    """The process's peak since the last time it was asked for; then the peak is forgotten."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak


# -- S8 --------------------------------------------------------------------------------------------------------------

_STEPS: Final = ("..", "%2e%2e", "%252e%252e", "..%2f", "..%5c", "....//", "%c0%ae%c0%ae", "\\..\\", "//", "%00", ".")
_TARGETS: Final = ("etc/passwd", "server.sqlite", "secret", "objects", "staging", "windows/win.ini", "")
CANARY: Final = b"CANARY-outside-the-root"


def out_of_the_root(trial: Trial) -> None:
    """S8. Paths, names and file names that lead elsewhere: nothing outside is served or made."""
    shared: World = trial.shared
    rng = trial.rng
    outside = shared.server.folder / "outside.txt"
    outside.write_bytes(CANARY)
    before = _listing(shared.server.folder)
    with shared.client() as client:
        for _ in range(20):
            steps = "/".join(rng.choice(_STEPS) for _ in range(rng.randrange(1, 8)))
            evil = f"{steps}/{rng.choice((*_TARGETS, 'outside.txt'))}"
            path = rng.choice(
                (
                    "/{e}", "/experiments/{e}", "/experiments/1/files/{e}/download", "/experiments/1/metrics/{e}/data",
                    "/sync/v1/segments/{e}", "/sync/v1/journals/{e}",
                    "/sync/v1/journals/" + "0" * 32 + "/blobs/{e}/state",
                    "/projects/{e}/experiments", "/sync/v1/experiments/1/blobs/{e}", "/experiments/1/files?prefix={e}",
                )
            ).format(e=evil if rng.random() < 0.6 else quote(evil, safe=""))  # fmt: skip
            answer = client.ask("GET", path.replace("\\", "%5C"))
            trial.check(CANARY not in answer.body, f"GET {path} shows a file outside")
            inside = b"SQLite format" in answer.body or b"root:x:" in answer.body
            trial.check(not inside, f"GET {path} shows too much")
            trial.check(answer.status < 500, f"GET {path}: {answer.status}")
        trial.counts["paths"] += 20
        _evil_names(trial, client)
    after = _listing(shared.server.folder)
    trial.check(before == after, f"made outside the data folder: {sorted(after - before)[:5]}")
    trial.check(not Path("/tmp/ml-dash-evil").exists(), "made in /tmp")


def _listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("stderr")}


def _evil_names(trial: Trial, client: Client) -> None:
    """Files whose names lead away are refused, or kept inside under their own name."""
    with site(trial) as here:
        pen = here.pen()
        names = ("../../evil", "/tmp/ml-dash-evil", "a/../../b", "..\\..\\evil", "CON", "x\x00y", ".", "..", "a" * 300)
        content = b"evil content"
        checksum = hashlib.sha256(content).hexdigest()
        pen.blob(checksum).write_bytes(content)
        body = {
            "path": trial.rng.choice(names), "prefix": trial.rng.choice(names), "filename": trial.rng.choice(names),
            "sizeBytes": len(content), "checksum": checksum, "contentType": "text/html",
        }  # fmt: skip
        pen.write(9, body)
        pen.close()
        promises = Promises()
        Shipper(pen, promises, trial.rng).finish(client)
        state = client.journal(pen.place.identity.hex())
        if state is None:
            return
        for record in client.files(state["experiment"]):
            answer = client.download(state["experiment"], record["id"])
            trial.check(answer.status in (200, 404, 409), f"the download of {record['filename']!r}: {answer.status}")
            if answer.status == 200:
                trial.check(answer.body == content, "another content was served")
        trial.counts["names"] += 1


# -- S9 --------------------------------------------------------------------------------------------------------------

SCRIPTS: Final = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "javascript:alert(1)",
    "'-alert(1)-'", "</title><script>alert(1)</script>", "{{7*7}}", "<!--", "]]>",
)  # fmt: skip
_HOSTILE: Final = {
    "x.html": ("text/html", b"<script>alert(document.cookie)</script>"),
    "x.svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "x.xml": ("application/xml", b'<?xml version="1.0"?><x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script>'),
    "x.js": ("text/javascript", b"alert(1)"),
    "x.png": ("image/png", b"<script>alert(1)</script>"),
}  # fmt: skip


def stored_scripts(trial: Trial) -> None:
    """S9. Scripts in names, logs and files are shown inert."""
    shared: World = trial.shared
    rng = trial.rng
    script = rng.choice(SCRIPTS)
    with shared.client() as client, site(trial) as here:
        name = script.replace("/", "|")[:150]
        place = here.place("run")
        place = type(place)(place.home, f"{here.project} {name}", name, place.identity)
        pen = WriterFixture(place, locked=False)
        pen.log(script, metadata={script: script})
        pen.parameters(**{script: script})
        pen.point(script, value=1.0)
        hostile = rng.choice(list(_HOSTILE))
        kind, content = _HOSTILE[hostile]
        checksum = hashlib.sha256(content).hexdigest()
        pen.blob(checksum).write_bytes(content)
        body = {
            "path": "/", "prefix": "", "filename": hostile, "sizeBytes": len(content), "checksum": checksum,
            "contentType": kind, "description": script,
        }  # fmt: skip
        pen.write(9, body)
        pen.close()
        Shipper(pen, Promises(), rng).finish(client)
        state = client.journal(place.identity.hex())
        if not trial.check(state is not None, "a name with a script in it was refused") or state is None:
            return
        page = client.ask("GET", "/", headers={"Accept": "text/html"})
        if "<" in name or '"' in name:
            trial.check(name.encode() not in page.body, f"the page shows {name!r} as it is")
        _headers(trial, "the page", page)
        (record,) = client.files(state["experiment"])
        answer = client.download(state["experiment"], record["id"])
        trial.check(answer.body == content, f"the download answers {answer.status}")
        _headers(trial, f"the download of {hostile}", answer)
        kind = answer.headers.get("content-type", "")
        kept_away = answer.headers.get("content-disposition", "").startswith("attachment")
        inert = kept_away or "sandbox" in answer.headers.get("content-security-policy", "")
        trial.check(inert, f"{hostile} is served as {kind}, neither as an attachment nor in a sandbox")
        logs = client.ask("GET", f"/experiments/{state['experiment']}/logs")
        _headers(trial, "the logs", logs)
        trial.check("html" not in logs.headers.get("content-type", ""), "logs are served as HTML")
        trial.counts["documents"] += 3
        pen.die()


def _headers(trial: Trial, what: str, answer: Answer) -> None:
    trial.check(answer.headers.get("x-content-type-options") == "nosniff", f"{what} comes without nosniff")


# -- S10 -------------------------------------------------------------------------------------------------------------


def other_peoples_things(trial: Trial) -> None:
    """S10. Whoever guesses another's ids finds nothing and writes nothing there."""
    shared: World = trial.shared
    with site(trial) as here, shared.client() as alice, shared.client(user="mallory") as mallory:
        pen = here.pen()
        for _ in range(8):
            pen.any(trial.rng)
        pen.file(b"secret content", "secret.bin")
        pen.close()
        Shipper(pen, Promises(), trial.rng).finish(alice)
        state = alice.journal(pen.place.identity.hex())
        assert state is not None
        experiment, data = state["experiment"], pen.path.read_bytes()
        _reads_nothing(trial, mallory, pen, state, alice.files(experiment))
        # Her own journal under the same id is hers alone.
        forged = WriterFixture(here.place("forged", pen.place.identity), locked=False)
        forged.log("by mallory")
        forged_data = forged.path.read_bytes()
        mallory.post_segment(pen.place.identity.hex(), forged.path.name, 0, forged_data)
        mallory.post_segment(pen.place.identity.hex(), pen.path.name, 0, data)
        mallory.json("POST", f"/projects/{pen.place.project}/experiments", {"name": pen.place.name})
        bodies = {"logs": {"logs": [{"level": "info", "message": "m"}]}, "parameters": {"data": {"m": 1}}}
        for path, value in bodies.items():
            mallory.ask("POST", f"/experiments/{experiment}/{path}", json.dumps(value).encode())
        mallory.ask("DELETE", f"/sync/v1/experiments/{experiment}")
        forged.die()
        here.places.pop()
        trial.fail(*judge(shared.server.port, here.places, here.pens))


def _reads_nothing(
    trial: Trial, mallory: Client, pen: WriterFixture, state: dict[str, Any], files: list[dict[str, Any]]
) -> None:
    experiment, journal = state["experiment"], pen.place.identity.hex()
    blob = next(pen.place.blobs.iterdir()).name
    paths = [
        f"/sync/v1/journals/{journal}", f"/sync/v1/segments/{pen.segment.hex()}",
        f"/sync/v1/experiments/{experiment}/order", f"/sync/v1/experiments/{experiment}/base",
        f"/sync/v1/experiments/{experiment}/blobs/{blob}", f"/experiments/{experiment}/logs",
        f"/experiments/{experiment}/files", f"/experiments/{experiment}/metrics", f"/experiments/{experiment}",
        f"/experiments/{experiment}/parameters", f"/experiments/{experiment}/files/{files[0]['id']}/download",
        f"/experiments/{experiment}/logs?namespace=alice", f"/sync/v1/journals/{journal}?namespace=alice",
    ]  # fmt: skip
    for path in paths:
        answer = mallory.ask("GET", path)
        told = f"GET {path} as another user: {answer.status} {answer.body[:100]!r}"
        trial.check(answer.status in (404, 403), told)
        trial.counts["guesses"] += 1
    answer = mallory.ask("GET", f"/sync/v1/journals/{journal}/blobs/{blob}/state")
    known = answer.status == 200 and answer.json().get("complete")
    trial.check(not known, "that a content is known to another user shows")


ROWS = (
    Row("S5", "tokens that are none", 500 * 12, 32, not_let_in, world),
    Row("S6", "bodies of every bad kind", 2_000, 22, too_much, world),
    Row("S8", "paths and names that lead elsewhere", 2_500, 8, out_of_the_root, world,
        unit="20 paths each"),
    Row("S9", "scripts in names, logs and files", 500, 9, stored_scripts, world),
    Row("S10", "another's ids", 400, 4, other_peoples_things, world, unit="14 guesses each"),
)  # fmt: skip
