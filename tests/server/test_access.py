"""Who may: tokens, their rights and ends, development logins, and where a server refuses to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from ml_dash.core.protocol import user_id
from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web

SECRET = "s" * 40


def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ml_dash", *arguments], env={**os.environ, **(env or {})}, input=stdin,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, with a secret of its own."""
    running = Server(tmp_path / "data", {"JWT_SECRET": SECRET}).start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all that only ask."""
    running = Server(tmp_path_factory.mktemp("secretive") / "data", {"JWT_SECRET": SECRET}).start()
    yield running
    running.end()


def new_token(server: Server, user: str, *options: str) -> tuple[str, str]:
    done = run("server", "token", "create", user, "--data", str(server.data), "--json", *options)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return made["id"], made["token"]


def test_a_token_is_good_for_its_user_until_it_is_revoked(own: Server) -> None:
    identity, token = new_token(own, "bob")
    bob = Web(own.url, token)
    assert bob.get("/whoami") == {
        "userName": "bob", "namespace": "bob", "kind": "token", "readOnly": False, "expiresAt": None,
    }  # fmt: skip
    experiment = bob.experiment("mine")
    alice = Web(own.url, development_token("alice", {"ML_DASH_JWT_SECRET": SECRET}))
    # Another's experiment is not even known to exist.
    alice.refused("GET", f"/experiments/{experiment}", 404, "unknown")
    alice.refused("GET", f"/experiments/{experiment}?namespace=bob", 404, "unknown")
    assert alice.get("/experiments")["total"] == 0
    listed = json.loads(run("server", "token", "list", "--data", str(own.data), "--json").stdout)
    assert [(one["id"], one["user"], one["revokedAt"]) for one in listed] == [(identity, "bob", None)]
    assert token not in json.dumps(listed)
    assert run("server", "token", "revoke", identity, "--data", str(own.data)).returncode == 0
    bob.refused("GET", "/experiments", 401, "unauthorised")
    assert run("server", "token", "revoke", "none", "--data", str(own.data)).returncode == 1
    # What is stored does not give the token away, nor does the log.
    for path in (*own.data.rglob("*"), own.data.with_name("data.log")):
        assert not path.is_file() or token.encode() not in path.read_bytes()
    for each in (bob, alice):
        each.session.close()


def test_a_token_may_be_for_reading_only_or_for_a_time(own: Server) -> None:
    _, full = new_token(own, "bob")
    _, read_only = new_token(own, "bob", "--read-only")
    _, read_all = new_token(own, "carol", "--read-all", "--expires", "90d")
    bob, looker, auditor = Web(own.url, full), Web(own.url, read_only), Web(own.url, read_all)
    experiment = bob.experiment("mine")
    assert looker.get(f"/experiments/{experiment}")["name"] == "mine"
    looker.refused("POST", f"/experiments/{experiment}/logs", 403, "forbidden", json={"logs": [{"message": "m"}]})
    looker.refused("DELETE", f"/sync/v1/experiments/{experiment}", 403, "forbidden")
    assert auditor.get(f"/experiments/{experiment}", namespace="bob")["name"] == "mine"
    path = f"/experiments/{experiment}/logs?namespace=bob"
    auditor.refused("POST", path, 403, "forbidden", json={"logs": [{"message": "m"}]})
    assert auditor.get("/whoami")["expiresAt"]
    for each in (bob, looker, auditor):
        each.session.close()


def signed(secret: str, algorithm: str = "HS256", **changes: object) -> str:
    now = int(time.time())
    claims = {"userId": user_id("alice"), "userName": "alice", "iat": now, "exp": now + 3600} | changes
    return jwt.encode({key: value for key, value in claims.items() if value is not None}, secret, algorithm=algorithm)


# By name: with the token itself in its id, the test would have another name in each process that collects it.
_NO_LOGINS = {
    "none": None,
    "empty": "",
    "a word": "x",
    "three words": "a.b.c",
    "another secret": signed("another secret of forty bytes, or nearly so"),
    "expired": signed(SECRET, exp=1),
    "never expires": signed(SECRET, exp=None),
    "of tomorrow": signed(SECRET, iat=int(time.time()) + 86_400),
    "another user's id": signed(SECRET, userName="bob"),
    "no user id": signed(SECRET, userId=None),
    "another algorithm": signed(SECRET * 2, "HS512"),
    "unsigned": jwt.encode({"userName": "alice"}, "", algorithm="none"),
}


@pytest.mark.parametrize("token", _NO_LOGINS.values(), ids=_NO_LOGINS)
def test_what_is_no_login_opens_nothing(secretive: Server, token: str | None) -> None:
    somebody = Web(secretive.url, token)
    for method, path in (("GET", "/experiments"), ("POST", "/projects/p/experiments"), ("GET", "/sync/v1/experiments")):
        somebody.refused(method, path, 401, "unauthorised", json={"name": "x"} if method == "POST" else None)
    # Not in the query either.
    somebody.refused("GET", f"/experiments?token={token}", 401, "unauthorised")
    somebody.session.close()


def test_a_login_that_the_server_signed_is_good(secretive: Server) -> None:
    alice = Web(secretive.url, signed(SECRET))
    assert alice.get("/whoami")["userName"] == "alice"
    alice.session.close()


def test_the_development_secret_is_for_dev_alone(tmp_path: Path) -> None:
    done = run("server", "--dev", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "--dev and --host 0.0.0.0 do not go together" in done.stderr
    done = run("server", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "ml-dash server token create USER" in done.stderr
    done = run("server", "--port", "0", "--data", str(tmp_path / "data"), env={"JWT_SECRET": "short"})
    assert done.returncode == 1
    assert "JWT_SECRET has less than 32 bytes" in done.stderr
    assert "short" not in done.stderr


def test_one_server_for_one_folder(own: Server) -> None:
    done = run("server", "--port", "0", "--data", str(own.data))
    assert done.returncode == 1
    assert "another server uses" in done.stderr


@pytest.mark.usefixtures("own_home")
def test_logins_are_stored_shown_and_forgotten(own: Server, tmp_path: Path) -> None:
    _, token = new_token(own, "bob")
    done = run("login", own.url, stdin=f"{token}\n")
    assert (done.returncode, done.stdout) == (0, f"logged in at {own.url} as bob\n")
    stored = Path(os.environ["XDG_CONFIG_HOME"], "ml-dash", "credentials.json")
    assert stored.stat().st_mode & 0o777 == 0o600
    shown = run("whoami")
    assert (shown.returncode, shown.stdout) == (0, f"{own.url}: bob, may read and write\n")
    assert run("login", own.url, stdin="wrong\n").returncode == 1
    assert json.loads(run("whoami", "--json").stdout)[0]["userName"] == "bob"
    assert run("logout", own.url).returncode == 0
    assert run("logout", own.url).returncode == 1
    assert run("whoami").returncode == 1
    assert token not in stored.read_text()
