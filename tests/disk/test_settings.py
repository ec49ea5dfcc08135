"""Where settings come from, and which are refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.disk import places
from ml_dash.disk import settings as settings_module
from ml_dash.disk.places import disabled, flag, is_loopback, quiet, remote_url
from ml_dash.disk.settings import OperationMode, resolve
from ml_dash.errors import InvalidValue, UnsupportedType

CWD = "/base/here"
LOCAL = "http://localhost:3000"
TEAM = "https://dash.example.org"


def settings(env: Any = None, **arguments: Any) -> settings_module.Settings:
    return resolve(env=env or {}, **{"cwd": CWD, **arguments})


# Where


@pytest.mark.parametrize(
    ("arguments", "env", "root", "store"),
    [
        ({}, {}, "/base/here/.ml-dash", "/base/here/.ml-dash"),
        ({"local_path": "runs"}, {}, "/base/here/runs", "/base/here/runs"),
        ({"local_path": Path("/data/runs")}, {}, "/data/runs", "/data/runs"),
        ({"local_prefix": "./experiments"}, {}, "/base/here/experiments", "/base/here/experiments/.ml-dash"),
        (
            {"local_prefix": "./experiments", "local_path": "journals"},
            {},
            "/base/here/experiments",
            "/base/here/experiments/journals",
        ),
        ({"local_prefix": "/data", "local_path": "/fast"}, {}, "/data", "/fast"),
        ({}, {"ML_DASH_LOCAL_PATH": "e"}, "/base/here/e", "/base/here/e"),
        ({}, {"ML_DASH_LOCAL_PREFIX": "/e"}, "/e", "/e/.ml-dash"),
        ({}, {"ML_DASH_LOCAL_PREFIX": "/e", "ML_DASH_LOCAL_PATH": "j"}, "/e", "/e/j"),
        ({}, {"ML_DASH_LOCAL_PATH": ""}, "/base/here/.ml-dash", "/base/here/.ml-dash"),
        ({"local_path": "/a"}, {"ML_DASH_LOCAL_PREFIX": "/e", "ML_DASH_LOCAL_PATH": "j"}, "/a", "/a"),
        ({"local_prefix": "/a"}, {"ML_DASH_LOCAL_PATH": "j"}, "/a", "/a/.ml-dash"),
        ({"remote": LOCAL, "user_name": "alice"}, {}, "/base/here/.ml-dash", "/base/here/.ml-dash"),
    ],
)
def test_root_and_store(arguments: dict[str, Any], env: dict[str, str], root: str, store: str) -> None:
    found = settings(env, **arguments)
    assert (str(found.root), str(found.store)) == (root, store)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert settings(local_path="~/runs").root == Path("/home/alice/runs")
    assert settings(local_prefix="~", local_path="~/j").store == Path("/home/alice/j")
    assert settings({"ML_DASH_LOCAL_PATH": "~/e"}).root == Path("/home/alice/e")
    assert settings(local_path="~/runs").local_path == "~/runs"


def test_a_tilde_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"local_path '~no-such-user/x' .*\./~no-such-user/x"):
        settings(local_path="~no-such-user/x")


def test_paths_are_those_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve(local_path="runs", env={})
    monkeypatch.chdir("/")
    assert found.root == tmp_path / "runs"


def test_the_parent_of_a_link_is_the_one_the_file_system_means(tmp_path: Path) -> None:
    (tmp_path / "deep" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "inner")
    found = settings(local_path="link/../runs", cwd=tmp_path)
    assert found.root == (tmp_path / "deep" / "runs").resolve()
    assert ".." not in found.store.parts


def test_a_link_itself_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert settings(local_path="link/runs", cwd=tmp_path).root == tmp_path / "link" / "runs"


def test_a_relative_path_needs_a_working_directory(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.rmdir(os.getcwd())\n"
        "from ml_dash.disk.settings import resolve; from ml_dash.errors import InvalidValue\n"
        "print(resolve(local_path='/abs', env={}).root)\n"
        "try: resolve(env={})\n"
        "except InvalidValue as error: print(error)\n"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    paths = {**os.environ, "PYTHONPATH": str(Path(settings_module.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=gone,
        env=paths,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "/abs"
    assert "give an absolute path" in done.stdout


@pytest.mark.parametrize("name", ["local_path", "local_prefix"])
@pytest.mark.parametrize("value", ["", "a\0b"])
def test_a_path_that_cannot_be_is_refused_by_the_name_of_its_argument(name: str, value: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{name} "):
        settings(**{name: value})


@pytest.mark.parametrize("value", [b"x", 3, ["x"]])
def test_a_path_of_another_type_is_a_type_error(value: Any) -> None:
    with pytest.raises(UnsupportedType, match=r"^local_path is"):
        settings(local_path=value)


# Precedence and sources


def test_an_argument_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    env = {"ML_DASH_DURABILITY": "os", "ML_DASH_USER_NAME": "bob", "ML_DASH_API_KEY": "k-env"}
    assert settings().durability == "interval"
    assert settings(env).durability == "os"
    assert settings(env, durability="always").durability == "always"
    found = settings(env, user_name="alice", local_path="x")
    assert (found.user_name, found.api_key) == ("alice", "k-env")
    assert found.sources == {
        "local_path": "argument",
        "local_prefix": "default",
        "remote": "default",
        "user_name": "argument",
        "api_key": "environment ML_DASH_API_KEY",
        "durability": "environment ML_DASH_DURABILITY",
    }


@pytest.mark.parametrize(
    ("env", "found"),
    [
        (
            {"ML_DASH_DURABILITY": "sometimes"},
            'ML_DASH_DURABILITY is \'sometimes\'; use "always", "interval" or "os"',
        ),
        ({"ML_DASH_REMOTE": "localhost:3000"}, "ML_DASH_REMOTE 'localhost:3000'"),
        ({"ML_DASH_LOCAL_PATH": "~no-such-user"}, "ML_DASH_LOCAL_PATH '~no-such-user'"),
        ({"ML_DASH_USER_NAME": "a\nb"}, "ML_DASH_USER_NAME is 'a\\nb'"),
        ({"ML_DASH_API_KEY": "a b"}, "ML_DASH_API_KEY contains"),
    ],
)
def test_a_bad_variable_raises_and_is_named(env: dict[str, str], found: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        settings(env)
    assert str(caught.value).startswith(found)


@pytest.mark.parametrize("name", ["remote", "user_name", "api_key", "durability"])
def test_an_empty_or_wrong_argument_raises_and_is_named(name: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{name} is empty"):
        settings(**{name: ""})
    with pytest.raises(UnsupportedType, match=rf"^{name} is int, expected str"):
        settings(**{name: 3})


@pytest.mark.parametrize("durability", ["always", "interval", "os"])
def test_there_are_three_durabilities(durability: str) -> None:
    assert settings(durability=durability).durability == durability


def test_settings_are_frozen_and_travel() -> None:
    found = settings(remote=LOCAL, user_name="alice")
    with pytest.raises(AttributeError):
        found.remote = None  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found) == hash(settings(remote=LOCAL, user_name="alice"))


# Remote


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Dash.Example.org:443/ml//", "https://dash.example.org/ml"),
        ("http://h:80", "http://h"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("https://h/a@b", "https://h/a@b"),
        ("https://h:80", "https://h:80"),
        ("http://h:", "http://h"),
    ],
)
def test_a_url_has_one_spelling(text: str, url: str) -> None:
    assert remote_url(text) == url
    assert remote_url(url) == url


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("localhost:3000", "http://localhost:3000"),
        ("dash.example.org", "http://localhost:3000"),
        ("ftp://h", "does not begin with http://"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://:80", "names no host"),
        ("http://h:0", "a port that cannot be"),
        ("http://h:99999", "is not a URL"),
        ("http://h:x", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://a b", "space"),
        ("http://a\nb", "control character"),
        ("http://h\\@evil", "backslash"),
        ("http://h?x=1", "query"),
        ("http://h/#x", "fragment"),
        ("https://alice@h", "user info"),
        ("https://alice:hunter2@h", "api_key="),
        ("https://alice:hunter2@h:x", "is not a URL"),
        ("alice:hunter2@h", "write it like"),
        ("https://h?token=hunter2", "query"),
        ("https://alice:hunt er2@h", "space"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_the_fix_and_without_secrets(text: str, fix: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        settings(remote=text, user_name="alice")
    message = str(caught.value)
    assert message.startswith("remote ")
    assert fix in message
    assert "hunt" not in message


@given(st.text(max_size=30).map(lambda text: "http://" + text))
def test_any_text_is_a_url_in_one_spelling_or_a_clear_error(text: str) -> None:
    try:
        url = remote_url(text)
    except InvalidValue:
        return
    assert remote_url(url) == url


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("http://localhost:3000", True),
        ("http://dash.localhost", True),
        ("http://127.0.0.1", True),
        ("http://127.8.8.8:1", True),
        ("http://[::1]:3000", True),
        ("http://127.evil.com", False),
        ("http://127.0.0.1.evil.com", False),
        ("http://localhost.evil.com", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        (TEAM, False),
    ],
)
def test_loopback(url: str, answer: bool) -> None:
    assert is_loopback(url) is answer


def test_modes() -> None:
    who = {"user_name": "alice"}
    assert settings().mode is OperationMode.LOCAL
    assert settings(local_path="x", **who).mode is OperationMode.LOCAL
    assert settings(remote=LOCAL, **who).mode is OperationMode.REMOTE
    assert settings(remote=LOCAL, local_path="x", **who).mode is OperationMode.HYBRID
    assert settings(remote=LOCAL, local_prefix="x", **who).mode is OperationMode.HYBRID
    assert settings({"ML_DASH_LOCAL_PATH": "x"}, remote=LOCAL, **who).mode is OperationMode.HYBRID
    assert settings({"ML_DASH_REMOTE": LOCAL, "ML_DASH_USER_NAME": "a"}).mode is OperationMode.REMOTE


# Who


def test_a_remote_without_any_login_is_recorded_for_and_belongs_to_nobody_yet() -> None:
    found = settings({"XDG_CONFIG_HOME": "/nonexistent"}, remote=TEAM)
    assert (found.remote, found.user_name, found.api_key) == (TEAM, None, None)


def test_a_stored_login_is_no_setting(tmp_path: Path) -> None:
    """Who sends is looked up where something is sent; it may be another login by then."""
    (tmp_path / "ml-dash").mkdir()
    (tmp_path / "ml-dash" / "credentials.json").write_text(json.dumps({"remotes": {TEAM: {"token": "stored"}}}))
    found = settings({"XDG_CONFIG_HOME": str(tmp_path)}, remote=TEAM)
    assert (found.api_key, found.sources["api_key"], found.secrets) == (None, "default", ())


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"XDG_CONFIG_HOME": "/etc/xdg", "HOME": "/home/a"}, "/etc/xdg/ml-dash"),
        ({"HOME": "/home/a"}, "/home/a/.config/ml-dash"),
        ({"XDG_CONFIG_HOME": "", "HOME": "/home/a"}, "/home/a/.config/ml-dash"),
        ({"XDG_CONFIG_HOME": "relative", "HOME": "/home/a"}, "/home/a/.config/ml-dash"),
    ],
)
def test_the_configuration_folder(env: dict[str, str], folder: str) -> None:
    assert str(places.config_folder(env)) == folder


def test_a_key_is_never_shown() -> None:
    found = settings(remote=TEAM, api_key="sk-hunter2")
    assert "hunter2" not in repr(found)
    assert "hunter2" not in str(found)
    assert found.secrets == ("sk-hunter2",)
    assert settings().secrets == ()
    with pytest.raises(InvalidValue) as caught:
        settings(api_key="hunter2\n")
    assert "hunter2" not in str(caught.value)


# Switches


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_switched_on(text: str) -> None:
    assert disabled({"ML_DASH_DISABLED": text})
    assert flag("KEEP_VERSIONS", {"ML_DASH_KEEP_VERSIONS": text})


@pytest.mark.parametrize("text", ["", "0", "false", "No", "off"])
def test_switched_off(text: str) -> None:
    assert not disabled({"ML_DASH_DISABLED": text})
    assert not disabled({})


def test_a_bad_switch_raises_and_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"^ML_DASH_DISABLED is 'maybe'"):
        disabled({"ML_DASH_DISABLED": "maybe"})


@pytest.mark.parametrize(
    ("env", "answer"),
    [
        ({}, False),
        ({"ML_DASH_QUIET": "1"}, True),
        ({"ML_DASH_QUIET": "0"}, False),
        ({"ML_DASH_DISABLED": "1"}, True),
        ({"RANK": "0"}, False),
        ({"RANK": "1"}, True),
        ({"SLURM_PROCID": "12"}, True),
        ({"RANK": "0", "SLURM_PROCID": "0"}, False),
        ({"RANK": "none"}, False),
        ({"RANK": ""}, False),
    ],
)
def test_who_is_quiet(env: dict[str, str], answer: bool) -> None:
    assert quiet(env) is answer


def test_a_child_process_is_quiet() -> None:
    program = (
        "import multiprocessing, sys\n"
        "from ml_dash.disk.places import quiet\n"
        "def child(): sys.exit(7 if quiet({}) else 8)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('fork').Process(target=child)\n"
        "    process.start(); process.join(30); print(quiet({}), process.exitcode)\n"
    )
    paths = {**os.environ, "PYTHONPATH": str(Path(settings_module.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=paths, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "7"]
