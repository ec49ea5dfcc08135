"""Logins: where they are kept, who may read them, and which one is shown to a server."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from ml_dash.core.protocol import DEVELOPMENT_SECRET, user_id
from ml_dash.recording.ending import described
from ml_dash.sync import login

SERVER = "https://dash.example.org"
HERE = "http://localhost:3000"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "ml-dash" / "credentials.json"


@pytest.fixture(autouse=True)
def _nothing_was_warned_of() -> Iterator[None]:
    login._warned.clear()
    yield
    login._warned.clear()


def test_a_stored_login_is_read_back(env: dict[str, str]) -> None:
    login.store(SERVER, "mld_abc", "alice", env)
    assert login.token_for(SERVER, env=env) == "mld_abc"
    assert login.logins(env) == [login.Login(SERVER, "alice", "mld_abc", {})]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"remotes": []}',
        *(
            json.dumps({"remotes": remotes}).encode()
            for remotes in (
                {SERVER: "token"}, {SERVER: {}}, {SERVER: {"token": 3}}, {SERVER: {"token": ""}},
                {SERVER: {"token": "a\r\nX-Evil: 1"}}, {SERVER: {"token": None, "tokens": {"ab": "with space"}}},
                {"http://other": {"token": "x"}}, {"no url": {"token": "x"}},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_login_is_none(env: dict[str, str], path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o600)
    assert login.tokens_for(SERVER, env=env) == []
    path.unlink()
    path.mkdir()
    assert login.tokens_for(SERVER, env=env) == []


def test_a_login_is_found_under_any_spelling_of_its_server(env: dict[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"remotes": {"https://DASH.example.org:443/": {"token": "stored"}}}))
    assert login.token_for(SERVER + "/", env=env) == "stored"


def test_of_all_that_is_stored_nothing_may_be_recorded(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what programs brought, what is for another server, and what a service was given."""
    login.store(SERVER, "mld_stored", "alice", env)
    login.remember(HERE, "mld_brought", env)
    given = tmp_path / "service"
    given.mkdir()
    (given / login.SERVICE_CREDENTIALS).write_text(json.dumps({"remotes": {"http://c": {"token": "mld_service"}}}))
    for name, value in {**env, "CREDENTIALS_DIRECTORY": str(given)}.items():
        monkeypatch.setenv(name, value)
    error = RuntimeError("mld_stored, mld_brought, mld_service, mld_mine")
    assert described(error, ["mld_mine"])["message"] == "***, ***, ***, ***"


def test_only_their_user_can_read_logins(env: dict[str, str], path: Path) -> None:
    before = os.umask(0)
    try:
        login.store(SERVER, "mld_abc", env=env)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_logins_that_others_can_read_are_used_and_told_of(
    env: dict[str, str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    login.store(SERVER, "mld_abc", env=env)
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "ml_dash"):
        assert login.token_for(SERVER, env=env) == "mld_abc"
        assert login.token_for(SERVER, env=env) == "mld_abc"
    assert [record.getMessage() for record in caplog.records] == [
        f"ml-dash: {path} can be read by other users; run: chmod 600 {path}"
    ]


def test_one_url_has_one_login_however_it_is_written(env: dict[str, str], path: Path) -> None:
    login.store("HTTPS://Dash.Example.org:443/", "old", env=env)
    login.store(SERVER, "new", env=env)
    assert list(json.loads(path.read_text())["remotes"]) == [SERVER]
    assert login.token_for("https://dash.example.org/", env=env) == "new"


def test_tokens_of_programs_go_side_by_side_with_the_login(env: dict[str, str]) -> None:
    login.store(SERVER, "mine", "alice", env)
    first, second = login.remember(SERVER, "one", env), login.remember(SERVER, "two", env)
    assert login.token_for(SERVER, None, first, env) == "one"
    assert login.token_for(SERVER, None, second, env) == "two"
    assert login.token_for(SERVER, env=env) == "mine"
    login.store(SERVER, "renewed", "alice", env)
    assert login.token_for(SERVER, None, first, env) == "one"


def test_a_token_that_is_known_is_not_written_again(env: dict[str, str], path: Path) -> None:
    login.remember(SERVER, "one", env)
    before = path.stat()
    login.remember(SERVER, "one", env)
    assert path.stat().st_ino == before.st_ino


def test_a_token_of_a_program_is_followed_by_no_other(env: dict[str, str]) -> None:
    """Data must not land in the namespace of whoever is logged in when the program's token is revoked."""
    mark = login.remember(SERVER, "revoked", env)
    login.store(SERVER, "mine", "alice", env)
    env = {**env, "ML_DASH_JWT_SECRET": "a secret of thirty-two bytes or more"}
    assert login.tokens_for(SERVER, None, mark, env) == ["revoked"]
    assert login.tokens_for(SERVER, "alice", mark, env) == ["revoked"]
    assert login.tokens_for(SERVER, "alice", "0" * 16, env) == []


def test_a_user_name_never_means_the_login_of_another_user(env: dict[str, str]) -> None:
    for url in (SERVER, HERE):
        login.store(url, "of bob".replace(" ", "-"), "bob", env)
        assert "of-bob" not in login.tokens_for(url, "alice", None, env)
    assert not login.has_login(SERVER, "alice", env=env)


def test_a_login_whose_user_nobody_asked_for_stands_for_no_name(env: dict[str, str]) -> None:
    login.store(SERVER, "whose", None, env)
    assert login.tokens_for(SERVER, "alice", None, env) == []
    assert login.tokens_for(SERVER, None, None, env) == ["whose"]


def test_forgetting_a_server_forgets_its_tokens_and_no_other_server(env: dict[str, str]) -> None:
    login.store(SERVER, "a", env=env)
    login.remember(SERVER, "b", env)
    login.store(HERE, "c", env=env)
    assert login.forget(SERVER, env)
    assert not login.forget(SERVER, env)
    assert login.tokens_for(SERVER, None, login.fingerprint("b"), env) == []
    assert login.token_for(HERE, env=env) == "c"


def test_the_development_login_says_who_it_is_for_thirty_days(env: dict[str, str]) -> None:
    token = login.development_token("alice", env)
    claims = jwt.decode(token, DEVELOPMENT_SECRET, algorithms=["HS256"])
    assert (claims["userId"], claims["userName"]) == ("3159282601", "alice")
    assert claims["exp"] - claims["iat"] == 30 * 86_400
    assert abs(claims["iat"] - time.time()) < 60


def test_the_development_login_is_signed_with_the_secret_of_the_environment(env: dict[str, str]) -> None:
    secret = "a secret of thirty-two bytes or more"
    token = login.development_token("bob", {**env, "ML_DASH_JWT_SECRET": secret})
    assert jwt.decode(token, secret, algorithms=["HS256"])["userId"] == user_id("bob")


def test_on_this_machine_a_user_name_is_enough_and_comes_first(env: dict[str, str]) -> None:
    login.store(HERE, "stored", "alice", env)
    first, second = login.tokens_for(HERE, "alice", None, env)
    assert jwt.decode(first, DEVELOPMENT_SECRET, algorithms=["HS256"])["userName"] == "alice"
    assert second == "stored"


def test_beyond_this_machine_a_user_name_alone_is_no_login(env: dict[str, str]) -> None:
    assert login.token_for(SERVER, "alice", env=env) is None
    assert not login.has_login(SERVER, "alice", env=env)


def test_beyond_this_machine_the_stored_login_comes_before_the_signed_one(env: dict[str, str]) -> None:
    env = {**env, "ML_DASH_JWT_SECRET": "a secret of thirty-two bytes or more"}
    assert login.has_login(SERVER, "alice", env=env)
    login.store(SERVER, "stored", "alice", env)
    assert login.tokens_for(SERVER, "alice", None, env)[0] == "stored"


def test_damaged_logins_are_set_aside_and_told_of(
    env: dict[str, str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"remotes": {')
    path.chmod(0o600)
    with caplog.at_level(logging.WARNING, "ml_dash"):
        assert login.token_for(SERVER, env=env) is None
        login.store(SERVER, "new", env=env)
    assert login.token_for(SERVER, env=env) == "new"
    assert path.with_name("credentials.json.damaged").read_bytes() == b'{"remotes": {'
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["null", "[]", '{"remotes": []}', '{"remotes": {"no url": {}}}', f'{{"remotes": {{"{SERVER}": 3}}}}',
     f'{{"remotes": {{"{SERVER}": {{"token": "a b", "tokens": {{"x": 1}}}}}}}}'],
)  # fmt: skip
def test_what_is_no_login_is_not_used(env: dict[str, str], path: Path, content: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert login.token_for(SERVER, None, "x", env) is None


def test_what_others_keep_in_the_file_stays(env: dict[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": 7, "remotes": {SERVER: {"token": "a", "note": "x"}}}))
    login.store(SERVER, "b", "alice", env)
    assert json.loads(path.read_text()) == {
        "version": 7,
        "remotes": {SERVER: {"token": "b", "note": "x", "user": "alice"}},
    }


def test_a_service_finds_its_own_logins_first(env: dict[str, str], tmp_path: Path) -> None:
    login.store(SERVER, "mine", env=env)
    (tmp_path / "ml-dash-credentials").write_text(json.dumps({"remotes": {SERVER: {"token": "the service's"[:3]}}}))
    assert login.token_for(SERVER, env={**env, "CREDENTIALS_DIRECTORY": str(tmp_path)}) == "the"


def test_no_token_is_shown_by_a_login() -> None:
    assert "secret" not in repr(login.Login(SERVER, "alice", "secret", {"x": "secret"}))


def test_processes_that_store_at_once_lose_nothing(env: dict[str, str]) -> None:
    script = (
        "import sys; from ml_dash.sync import login\n"
        "sys.stdin.read()\n"
        "for i in range(10): login.remember(f'http://h{sys.argv[1]}', f'token-{sys.argv[1]}-{i}')"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(n)], env={**os.environ, **env}, stdin=subprocess.PIPE)
        for n in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=60) for process in started] == [0] * 4
    assert {one.url: len(one.tokens) for one in login.logins(env)} == {f"http://h{n}": 10 for n in range(4)}
