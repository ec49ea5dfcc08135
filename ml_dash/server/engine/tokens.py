"""Tokens of users: created, looked up by hash, listed, revoked. Their text is never stored.

A token is `mld_` and 256 random bits. The database keeps its SHA-256 only: who reads a backup cannot log in with it.
A slow hash, as for passwords, would add nothing, since nobody can try 2^256 texts.

`ml-dash server token` works on the same database while the server runs: a token that is revoked there is refused from
the next request on, because every request looks its token up.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from time import time_ns
from typing import Any, Final

from ...errors import InvalidValue
from ..settings import ServerSettings
from ..stores import Documents, TokenRow
from ..stores.wiring import make_data, open_stores

# So that people, and programs that search for secrets, recognise a token.
PREFIX: Final = "mld_"


class Tokens:
    """The tokens that a server knows. Any thread may call."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def create_token(
        self, user: str, *, read_only: bool = False, expires_ns: int | None = None, read_all: bool = False
    ) -> tuple[str, str]:
        """Make a token for a user; return (id, text). The text cannot be had later. `expires_ns`: ns since the epoch.

        Raises InvalidValue for a user without a name.
        """
        if not user.strip() or not user.isprintable():
            raise InvalidValue(f"user is {user!r}", hint="use the name that the user has as user_name=")
        text = PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(os.urandom(6).hex(), _digest(text), user, read_only, read_all, time_ns(), expires_ns or 0, 0)
        self._documents.put_token(row)
        return row.id, text

    def find_token(self, text: str) -> dict[str, Any] | None:
        """Return whose token this is and what it allows; None if it is unknown, expired or revoked.

        It is looked up by its SHA-256, so the time that this takes says nothing about existing tokens.
        """
        with self._documents.view() as view:
            row = view.token(_digest(text))
        if row is None or row.revoked_ns or (row.expires_ns and row.expires_ns <= time_ns()):
            return None
        return _shown(row)

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens ever made, oldest first, without their texts."""
        with self._documents.view() as view:
            return [
                {**_shown(row), "created_ns": row.created_ns, "revoked_ns": row.revoked_ns} for row in view.tokens()
            ]

    def revoke_token(self, identity: str) -> bool:
        """Revoke a token, from now on; return False if there is no such token."""
        with self._documents.view() as view:
            row = next((row for row in view.tokens() if row.id == identity), None)
        # The first time counts: revoking it again changes nothing.
        if row is not None and not row.revoked_ns:
            self._documents.put_token(replace(row, revoked_ns=time_ns()))
        return row is not None


@contextlib.contextmanager
def open_tokens(settings: ServerSettings) -> Iterator[Tokens]:
    """Open the tokens of a server, with or without it running.

    Raises StoreRefused, StoreTrouble, OSError.
    """
    make_data(settings.data)
    stores = open_stores(settings)
    try:
        yield Tokens(stores.documents)
    finally:
        stores.close()


def _digest(text: str) -> str:
    """Return the SHA-256 (hex) of a token's text.

    Whatever a request brings can be hashed, also half a surrogate pair.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(row: TokenRow) -> dict[str, Any]:
    """Return what callers may know of a token: never its digest."""
    return {
        "id": row.id,
        "user": row.user,
        "read_only": row.read_only,
        "read_all": row.read_all,
        "expires_ns": row.expires_ns or None,
    }
