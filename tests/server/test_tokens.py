"""Tokens: told once, found by what they hash to, expired, revoked, made beside a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import time_ns

import pytest

from ml_dash.errors import InvalidValue
from ml_dash.server.engine.services import Server, open_tokens
from ml_dash.server.settings import ServerSettings
from tests.server.sending import everything


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data")
    yield server
    server.close()


def test_a_token_opens_until_it_is_revoked(core: Server) -> None:
    identity, text = core.create_token("alice", read_only=True)
    assert text.startswith("mld_")
    assert core.find_token(text) == {
        "id": identity, "user": "alice", "read_only": True, "read_all": False, "expires_ns": None,
    }  # fmt: skip
    assert core.revoke_token(identity) is True
    assert core.find_token(text) is None
    assert core.revoke_token(identity) is True
    assert core.revoke_token("nobody") is False
    (listed,) = core.list_tokens()
    assert listed["id"] == identity
    assert listed["revoked_ns"] > 0


def test_an_expired_token_opens_nothing(core: Server) -> None:
    _, late = core.create_token("alice", expires_ns=time_ns() - 1)
    _, soon = core.create_token("alice", expires_ns=time_ns() + 60_000_000_000)
    assert core.find_token(late) is None
    found = core.find_token(soon)
    assert found is not None
    assert found["expires_ns"] > time_ns()


@pytest.mark.parametrize("text", ["", "mld_", "mld_x", "' OR 1=1 --", "\x00", "\ud800", "x" * 100_000])
def test_what_is_no_token_opens_nothing(core: Server, text: str) -> None:
    core.create_token("alice")
    assert core.find_token(text) is None


@pytest.mark.parametrize("user", ["", "  ", "a\nb", "\x00"])
def test_a_user_has_a_name(core: Server, user: str) -> None:
    with pytest.raises(InvalidValue):
        core.create_token(user)


def test_tokens_are_made_beside_a_running_server(core: Server, tmp_path: Path) -> None:
    with open_tokens(ServerSettings(tmp_path / "data")) as tokens:
        identity, text = tokens.create_token("bob", read_all=True)
    found = core.find_token(text)
    assert found is not None
    assert (found["user"], found["read_all"]) == ("bob", True)
    with open_tokens(ServerSettings(tmp_path / "data")) as tokens:
        assert tokens.revoke_token(identity)
    assert core.find_token(text) is None


def test_the_text_of_a_token_is_nowhere_on_disk(core: Server, tmp_path: Path) -> None:
    _, text = core.create_token("alice")
    assert not any(text[4:].encode() in content for content in everything(tmp_path).values())
    assert all(text != value for listed in core.list_tokens() for value in listed.values())
