"""Downloads from the bucket: a link in place of the content, and nothing of the client's login goes along."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from ml_dash import Experiment, RemoteClient
from ml_dash.core.names import experiment_id
from ml_dash.errors import Unreachable
from ml_dash.server.http.downloads import LINKED_FROM_BYTES
from ml_dash.sync import remote
from ml_dash.sync.login import development_token
from tests.e2e.proxy import ANSWER, PASS, Fault, Proxy, Request, answer
from tests.running import Server, once
from tests.server.conftest import Web
from tests.services import Service, running

CONTENT = bytes(range(256)) * 1024
SMALL = b"x" * (LINKED_FROM_BYTES - 1)


@dataclass
class Bucket:
    """What is asked of the bucket by its public address: a proxy before the service."""

    proxy: Proxy
    heads: list[bytes] = field(default_factory=list)
    answers: bytes = b""

    def plan(self, request: Request) -> Fault:
        """Note what is asked."""
        self.heads.append(request.raw.partition(b"\r\n\r\n")[0].lower())
        return Fault(ANSWER, answer=self.answers) if self.answers else Fault(PASS)


@pytest.fixture(scope="module")
def proxy(s3_service: Service) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", s3_service.port)) as made:
        # Its threads are those of single tests, see `bucket`.
        made.down()
        yield made


@pytest.fixture
def bucket(proxy: Proxy) -> Iterator[Bucket]:
    made = Bucket(proxy)
    proxy.plan = made.plan
    proxy.up()
    yield made
    proxy.down()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, s3_service: Service, proxy: Proxy) -> Iterator[Server]:
    client = running.s3_client(s3_service)
    environment = {
        "S3_BUCKET": running.bucket(client), "S3_ENDPOINT": f"http://{s3_service.address}", "S3_PUBLIC_URL": proxy.url,
        "S3_ACCESS_KEY": running.ACCESS_KEY, "S3_SECRET_KEY": running.SECRET_KEY,
    }  # fmt: skip
    client.close()
    made = Server(tmp_path_factory.mktemp("links") / "data", environment).start()
    yield made
    made.end()


@pytest.fixture(scope="module")
def alice(server: Server) -> Iterator[Web]:
    made = Web(server.url, development_token("alice"))
    yield made
    made.session.close()


@pytest.fixture(scope="module")
def files(alice: Web) -> dict[str, str]:
    """Where to get the large and the small one."""
    path = f"/experiments/{alice.experiment('links')}/files"
    records = {
        name: alice.ask("POST", path, files={"file": (name, content)}).json()
        for name, content in (("large.bin", CONTENT), ("small.bin", SMALL), ("me é.html", CONTENT))
    }
    return {name: f"{path}/{record['id']}/download" for name, record in records.items()}


@pytest.fixture
def client(server: Server) -> Iterator[RemoteClient]:
    with RemoteClient(server.url, user_name="alice") as made:
        yield made


def ids(path: str) -> tuple[str, str]:
    """Of the experiment and of the file."""
    parts = path.split("/")
    return parts[2], parts[4]


def test_a_large_file_is_answered_with_a_link(alice: Web, files: dict[str, str], bucket: Bucket) -> None:
    answered = alice.ask("GET", files["large.bin"], 307)
    assert answered.headers["Location"].startswith(f"{bucket.proxy.url}/")
    assert answered.headers["Cache-Control"] == "no-store"
    assert answered.content == b""
    # The link is all that it takes: no login, and nothing of the secret key.
    assert requests.get(answered.headers["Location"], timeout=30).content == CONTENT
    assert running.SECRET_KEY not in answered.headers["Location"]


@pytest.mark.parametrize("asked", ["bytes=0-0", "bytes=100-70000", "bytes=-5", "bytes=262143-"])
def test_a_range_goes_along(alice: Web, files: dict[str, str], bucket: Bucket, asked: str) -> None:
    headers = {"Range": asked, "Authorization": str(alice.session.headers["Authorization"])}
    answered = requests.get(alice.url + files["large.bin"], headers=headers, timeout=30)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    expected = CONTENT[int(first) : int(last or len(CONTENT)) + 1] if first else CONTENT[-int(last) :]
    assert (answered.status_code, answered.content) == (206, expected)
    assert [response.status_code for response in answered.history] == [307]
    assert f"range: {asked}".encode() in bucket.heads[0]


def test_what_follows_a_link_sends_no_login_there(
    alice: Web, files: dict[str, str], bucket: Bucket, client: RemoteClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert b"".join(client.read_file(*ids(files["large.bin"]))) == CONTENT
    token = str(alice.session.headers["Authorization"])
    with requests.Session() as plain:
        plain.trust_env = False
        assert plain.get(alice.url + files["large.bin"], headers={"Authorization": token}, timeout=30).ok
    assert len(bucket.heads) == 2
    for head in bucket.heads:
        assert b"authorization" not in head
        assert b"cookie" not in head
        assert token.removeprefix("Bearer ").lower().encode() not in head


def test_a_client_gets_the_content_whole_and_in_part(
    client: RemoteClient, files: dict[str, str], bucket: Bucket, tmp_path: Path
) -> None:
    experiment, file = ids(files["large.bin"])
    copy = client.download_file(experiment, file, tmp_path / "copy.bin")
    assert Path(copy).read_bytes() == CONTENT
    assert b"".join(client.read_file(experiment, file, 100, 200)) == CONTENT[100:200]
    assert len(bucket.heads) == 2
    assert b"".join(client.read_file(*ids(files["small.bin"]))) == SMALL
    assert len(bucket.heads) == 2


def test_what_the_server_knows_it_answers_itself(alice: Web, files: dict[str, str], bucket: Bucket) -> None:
    large = files["large.bin"]
    head = alice.ask("HEAD", large)
    assert head.headers["Content-Length"] == str(len(CONTENT))
    tag = head.headers["ETag"]
    alice.ask("GET", large, 304, headers={"If-None-Match": tag})
    outside = alice.ask("GET", large, 416, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert outside.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    assert alice.ask("GET", files["small.bin"]).content == SMALL
    for mode in ("cors", "same-origin"):
        assert alice.ask("GET", large, headers={"Sec-Fetch-Mode": mode}).content == CONTENT
    for mode in ("navigate", "no-cors"):
        alice.ask("GET", large, 307, headers={"Sec-Fetch-Mode": mode})
    assert bucket.heads == []


def test_a_browser_saves_what_a_link_leads_to(alice: Web, files: dict[str, str], bucket: Bucket) -> None:
    answered = requests.get(alice.ask("GET", files["me é.html"], 307).headers["Location"], timeout=30)
    assert answered.headers["Content-Disposition"] == "attachment; filename*=UTF-8''me%20%C3%A9.html"
    assert answered.headers["Content-Type"] == "application/octet-stream"


def test_whoever_may_not_read_gets_no_link(alice: Web, files: dict[str, str], bucket: Bucket) -> None:
    for web, status in ((Web(alice.url, None), 401), (Web(alice.url, development_token("mallory")), 404)):
        with web.session:
            assert "Location" not in web.ask("GET", files["large.bin"], status).headers


def test_a_deleted_file_gets_no_link(alice: Web, bucket: Bucket) -> None:
    path = f"/experiments/{alice.experiment('links')}/files"
    record = alice.ask("POST", path, files={"file": ("gone.bin", CONTENT)}).json()
    alice.ask("DELETE", f"{path}/{record['id']}")
    alice.refused("GET", f"{path}/{record['id']}/download", 404, "unknown")


@pytest.mark.parametrize("status", [302, 403, 404, 503])
def test_a_bucket_that_refuses_is_reported_without_the_link(
    client: RemoteClient, files: dict[str, str], bucket: Bucket, status: int
) -> None:
    bucket.answers = answer(status, b"<Error/>", "Location: http://127.0.0.1:1/", kind="application/xml")
    with pytest.raises(Unreachable) as refused:
        b"".join(client.read_file(*ids(files["large.bin"])))
    assert str(status) in str(refused.value)
    assert bucket.proxy.url in str(refused.value)
    assert "Signature" not in str(refused.value)


def test_a_bucket_that_cannot_be_reached_is_reported_without_the_link(
    client: RemoteClient, files: dict[str, str], bucket: Bucket
) -> None:
    bucket.proxy.down()
    with pytest.raises(Unreachable, match="cannot be reached") as refused:
        b"".join(client.read_file(*ids(files["large.bin"])))
    assert "Signature" not in str(refused.value)
    assert "S3_PUBLIC_URL" in str(refused.value)


def test_a_redirect_of_something_between_is_not_followed(bucket: Bucket) -> None:
    """A sign-in page of a network redirects too; only the server's own word counts."""
    bucket.answers = answer(307, b"", f"Location: {bucket.proxy.url}/login")
    with RemoteClient(bucket.proxy.url, api_key="mld_" + "x" * 43) as client, pytest.raises(Unreachable):
        b"".join(client.read_file("1", "2"))
    assert len(bucket.heads) == 1


def test_a_pull_goes_through_the_server(server: Server, bucket: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(CONTENT)
    with Experiment("pulled", "links", local_path=tmp_path / "store") as experiment:
        experiment.file(str(source), prefix="/models")
    there = ["--store", str(tmp_path / "store"), "--remote", server.url, "--user", "alice"]
    # What other tests have registered is not sent here.
    assert once({"XDG_STATE_HOME": str(tmp_path / "state")}, *there) == 0
    with contextlib.closing(remote.Link(server.url, development_token("alice"))) as link:
        found = remote.find_experiment(link, "links", "pulled")
        [journal] = found["journals"]
        [blob] = remote.journal(link, journal)["blobs"]
        assert b"".join(remote.blob(link, experiment_id("links", "pulled"), blob)) == CONTENT
    assert bucket.heads == []
