"""Identities at a server: the owner of the token that a call uses, and the message when it is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import Unauthorised
from . import remote
from .registrations import Registration
from .remote import Link

_Answer = TypeVar("_Answer")


def with_identity(registration: Registration, attempt: Callable[[int, str], _Answer]) -> _Answer:
    """Return `attempt(number, token)` for the first token of the registration's identity that the server accepts.

    Only tokens of that identity are tried: data never goes under another login, whoever is logged in meanwhile.
    Raises Unauthorised, naming the identity, if it is refused, has no token here, or nobody has claimed the journal.
    """
    if not registration.is_claimed:
        raise Unauthorised(
            f"nobody has claimed what was recorded for {registration.remote} yet: it is kept here",
            hint=f"run: ml-dash login {registration.remote}, or ml-dash push",
        )
    return _with_tokens(registration.remote, registration.identity(), registration.tokens(), attempt)


def connect(registration: Registration) -> Link:
    """Return a connection to the registration's server under its own identity.

    Raises Unauthorised if there is no token, or none is accepted; Unreachable if the server does not answer.
    """

    def attempt(number: int, token: str) -> Link:
        link = Link(registration.remote, token)
        try:
            remote.whoami(link)
        except BaseException:
            link.close()
            raise
        return link

    return with_identity(registration, attempt)


def _with_tokens(url: str, identity: str, tokens: Sequence[str], attempt: Callable[[int, str], _Answer]) -> _Answer:
    """Return `attempt(number, token)` for the first of `tokens` that the server accepts.

    Raises Unauthorised if there is none, or if all are refused; the message names their owner, `identity`.
    """
    refused = None
    for number, token in enumerate(tokens):
        try:
            return attempt(number, token)
        except Unauthorised as error:
            refused = error
    if refused is None:
        raise Unauthorised(
            f"there is no login for {url} as {identity} here: data is kept here, and goes under no other login",
            hint=f"run: ml-dash login {url}",
        )
    # A user may log in again. A journal that is bound to a token gets another one only by `push`.
    login = f"ml-dash login {url}"
    push = f"to send it with another token: {login}, then ml-dash push EXPERIMENT --remote {url}"
    raise Unauthorised(
        f"{url} refuses {identity}: data is kept here, and goes under no other login",
        hint=f"run: {login}" if identity.startswith("user ") else push,
    ) from refused
