"""What the daemon takes from options, its file and the environment; an error names the key and what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash.errors import InvalidValue
from ml_dash_syncd import settings

URL = "http://127.0.0.1:3000"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "syncd.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_there_is_nothing_but_what_is_registered() -> None:
    assert settings.read(env={"HOME": "/nowhere"}) == settings.Settings()


def test_the_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, f'stores = ["a", "/b"]\nremote = "{URL}/"\nuser = "alice"\nlisten = 0\n')
    found = settings.read(config=path, env={})
    assert found == settings.Settings(
        stores=(tmp_path / "a", Path("/b")), remote=URL, user="alice", listen=0, file=path
    )


def test_the_file_lies_beside_the_logins(tmp_path: Path) -> None:
    (tmp_path / "ml-dash").mkdir()
    path = write(tmp_path / "ml-dash", 'user = "alice"\n')
    found = settings.read(env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert (found.user, found.file) == ("alice", path)


def test_options_win_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, f'stores = ["/a"]\nremote = "{URL}"\nlisten = 1\n')
    env = {"ML_DASH_REMOTE": "http://from.env", "ML_DASH_USER_NAME": "env"}
    found = settings.read(config=path, stores=[Path("/c")], listen=2, env=env)
    assert (found.stores, found.remote, found.listen, found.user) == ((Path("/c"),), URL, 2, "env")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stores = 'a'", ("stores", "list of folders")),
        ("stores = ['']", ("stores", "list of folders")),
        ("stores = [1]", ("stores", "list of folders")),
        ("stores = ['~nobody-of-that-name/x']", ("stores", "list of folders")),
        ("remote = 3", ("remote", "URL")),
        ("remote = 'ftp://x'", ("remote", "http")),
        ("user = ''", ("user", "name")),
        ("listen = true", ("listen", "port")),
        ("listen = 70000", ("listen", "port")),
        ("store = ['a']", ("'store'", "stores (a list of folders)")),
        ("stores = [", ("cannot be read", "TOML")),
        ("stores = ['/a']", ("no remote", "--remote")),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: tuple[str, str]) -> None:
    with pytest.raises(InvalidValue) as caught:
        settings.read(config=write(tmp_path, text), env={})
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="no settings file"):
        settings.read(config=tmp_path / "none.toml", env={})
