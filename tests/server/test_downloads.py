"""Contents on their way out: by range, by condition, inert in a browser, and under any name."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web

CONTENT = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[Web]:
    made = Web(server.url, development_token("downloads"))
    yield made
    made.session.close()


@pytest.fixture(scope="module")
def path(owner: Web) -> str:
    """Where to get CONTENT."""
    return add(owner, "data.bin", CONTENT)


def add(owner: Web, name: str, content: bytes, experiment: str = "ranges") -> str:
    files = f"/experiments/{owner.experiment(experiment)}/files"
    form = (
        f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + content + b"\r\n--B--\r\n"
    )  # fmt: skip
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    record = owner.ask("POST", files, data=form, headers=headers).json()
    assert record["filename"] == name.replace('\\"', '"')
    return f"{files}/{record['id']}/download"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=0-", 0, 2048), ("bytes=2047-2047", 2047, 2048), ("bytes=2000-99999", 2000, 2048),
        ("bytes=-1", 2047, 2048), ("bytes=-99999", 0, 2048), ("bytes=100-199", 100, 200), ("bytes= 5 - 6 ", 5, 7),
    ],
)  # fmt: skip
def test_a_range_is_exactly_that(owner: Web, path: str, asked: str, start: int, end: int) -> None:
    answer = owner.ask("GET", path, 206, headers={"Range": asked})
    assert answer.content == CONTENT[start:end]
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/2048"
    assert answer.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=2048-", "bytes=2048-3000", "bytes=-0", "bytes=999999999999-"])
def test_a_range_outside_is_refused_with_the_size(owner: Web, path: str, asked: str) -> None:
    answer = owner.ask("GET", path, 416, headers={"Range": asked})
    assert answer.headers["Content-Range"] == "bytes */2048"
    assert answer.content == b""


@pytest.mark.parametrize(
    "asked", ["bytes=5-4", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,4-5", "bytes=0-" + "9" * 40, "\xb2"]
)
def test_what_is_no_range_gets_the_whole(owner: Web, path: str, asked: str) -> None:
    assert owner.ask("GET", path, headers={"Range": asked.encode("latin-1")}).content == CONTENT


def test_conditions(owner: Web, path: str) -> None:
    tag = owner.ask("GET", path).headers["ETag"]
    assert tag == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert owner.ask("GET", path, 206, headers={"Range": "bytes=0-1", "If-Range": tag}).content == CONTENT[:2]
    assert owner.ask("GET", path, headers={"Range": "bytes=0-1", "If-Range": '"older"'}).content == CONTENT
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        assert owner.ask("GET", path, 304, headers={"If-None-Match": given}).content == b""
    assert owner.ask("GET", path, headers={"If-None-Match": '"other"'}).content == CONTENT


def test_head_tells_without_sending(owner: Web, path: str) -> None:
    answer = owner.ask("HEAD", path)
    assert (answer.headers["Content-Length"], answer.content) == ("2048", b"")
    assert owner.ask("HEAD", path, 206, headers={"Range": "bytes=-5"}).headers["Content-Length"] == "5"


def test_an_empty_file_is_a_file(owner: Web) -> None:
    path = add(owner, "empty", b"")
    answer = owner.ask("GET", path)
    assert (answer.content, answer.headers["Content-Length"]) == (b"", "0")
    owner.ask("GET", path, 416, headers={"Range": "bytes=0-"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.html", "application/octet-stream"), ("image.svg", "application/octet-stream"),
        ("code.js", "application/octet-stream"), ("page.xhtml", "application/octet-stream"),
        ("doc.pdf", "application/octet-stream"), ("plot.png", "image/png"), ("notes.txt", "text/plain; charset=utf-8"),
        ("über\N{SNOWMAN} %0d%0aSet-Cookie.txt", "text/plain; charset=utf-8"),
        ('quote\\"d.txt', "text/plain; charset=utf-8"), ("a;b=c.txt", "text/plain; charset=utf-8"),
    ],
)  # fmt: skip
def test_no_browser_runs_what_a_file_holds(owner: Web, name: str, kind: str) -> None:
    answer = owner.ask("GET", add(owner, name, b"<script>alert(1)</script>", "inert"))
    headers = answer.headers
    assert headers["Content-Type"] == kind
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("sandbox")
    disposition = headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.endswith("filename*=UTF-8''" + quote(name.replace('\\"', '"'), safe=""))
    assert disposition.isascii()
    assert "Set-Cookie" not in headers


def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(owner: Web) -> None:
    content = CONTENT * (8 << 10)  # 16 MiB: more than sockets hold
    path = add(owner, "large.bin", content, "deleted")
    with owner.session.get(owner.url + path, stream=True, timeout=30) as answer:
        blocks = answer.iter_content(1 << 20)
        had = next(blocks)
        other = Web(owner.url, development_token("downloads"))
        other.ask("DELETE", path.removesuffix("/download"))
        had += b"".join(blocks)
        other.refused("GET", path, 404, "unknown")
        other.session.close()
    assert had == content


def test_many_read_at_once(owner: Web, path: str) -> None:
    wrong: list[Any] = []

    def read(number: int) -> None:
        mine = Web(owner.url, development_token("downloads"))
        for start in range(number, 2048, 256):
            got = mine.ask("GET", path, 206, headers={"Range": f"bytes={start}-{start + 9}"}).content
            if got != CONTENT[start : start + 10]:
                wrong.append((start, got))
        mine.session.close()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
