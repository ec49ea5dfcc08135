"""Logins: the tokens stored for each server, and the choice among them.

`credentials.json` in the user's configuration folder, mode 0600 in a folder of mode 0700:

    {"remotes": {url: {"token": text or null, "user": name or null, "tokens": {fingerprint: token}}}}

`token` is what `ml-dash login` stored. `tokens` are those that programs brought as `api_key=`; a registration names one
by its fingerprint, so that several for one server go side by side. A service finds its own in
`$CREDENTIALS_DIRECTORY/ml-dash-credentials`, of the same form; what is there wins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..core.protocol import DEVELOPMENT_SECRET, user_id
from ..disk.durable import replace_file
from ..disk.lock import Turn
from ..disk.places import Environment, config_folder, is_loopback, remote_url
from ..disk.settings import is_token

log = logging.getLogger("ml_dash")

CREDENTIALS: Final = "credentials.json"
SERVICE_CREDENTIALS: Final = "ml-dash-credentials"
SECRET_VARIABLE: Final = "ML_DASH_JWT_SECRET"
TOKEN_DAYS: Final = 30

# How long to wait for another process that changes the file; after that it is changed all the same.
_WAIT_S: Final = 5.0
# Mode bits of the group and of others.
_FOR_OTHERS: Final = 0o077
# Texts of the warnings that this process has logged.
_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Login:
    """The tokens stored for one server; `repr` does not show them."""

    url: str
    user: str | None
    token: str | None
    tokens: dict[str, str]

    def __repr__(self) -> str:
        return f"<Login of {self.user or 'somebody'} at {self.url}>"


def fingerprint(token: str) -> str:
    """Return a name for a token that does not reveal it: 16 hex digits of its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


# -- the token to use ------------------------------------------------------------------------------------------------


def token_for(
    url: str, user_name: str | None = None, fingerprint: str | None = None, env: Environment | None = None
) -> str | None:
    """Return the token to try first at that server; None if there is no login for it."""
    return next(iter(tokens_for(url, user_name, fingerprint, env)), None)


def tokens_for(
    url: str, user_name: str | None = None, fingerprint: str | None = None, env: Environment | None = None
) -> list[str]:
    """Return the tokens of one identity at that server, the one to try first in front; never those of another identity.

    A `fingerprint` means that one token and nothing else: if the server refuses it, no other is tried. A `user_name`
    means that user: on this machine the development login, then what `ml-dash login` stored for the same user, then a
    login signed with `ML_DASH_JWT_SECRET`. With neither, it is what `ml-dash login` stored, whoever that is: only for
    what a person asks at this moment, never for what was registered before.
    """
    tokens = [make() for make in _choices(remote_url(url), user_name, fingerprint, _environment(env))]
    return list(dict.fromkeys(tokens))


def has_login(
    url: str, user_name: str | None = None, fingerprint: str | None = None, env: Environment | None = None
) -> bool:
    """True if `token_for` would find a token. Signs nothing and loads no module."""
    return any(True for _ in _choices(remote_url(url), user_name, fingerprint, _environment(env)))


def _choices(url: str, name: str | None, mark: str | None, env: Environment) -> Iterator[Callable[[], str]]:
    """Yield functions that return the tokens, in the order in which to try them: a token is signed only when called."""
    stored = _stored(url, env)
    token = stored.token if stored is not None else None
    if mark is not None:
        brought = stored.tokens.get(mark) if stored is not None else None
        if brought is None and token is not None and fingerprint(token) == mark:
            brought = token
        if brought is not None:
            yield lambda: str(brought)
        return
    if name is not None and is_loopback(url):
        yield lambda: development_token(name, env)
    if token is not None and stored is not None and name in (None, stored.user):
        yield lambda: str(token)
    if name is not None and not is_loopback(url) and env.get(SECRET_VARIABLE):
        yield lambda: development_token(name, env)


def development_token(user_name: str, env: Environment | None = None) -> str:
    """Return a JWT that names the user, valid for 30 days, signed with `ML_DASH_JWT_SECRET`.

    Without that variable it is signed with the well-known development secret, which only a server on this machine
    accepts, and only with `--dev`.
    """
    import jwt

    now = int(time.time())
    claims = {"userId": user_id(user_name), "userName": user_name, "iat": now, "exp": now + TOKEN_DAYS * 86_400}
    return jwt.encode(claims, _environment(env).get(SECRET_VARIABLE) or DEVELOPMENT_SECRET, algorithm="HS256")


def _environment(env: Environment | None) -> Environment:
    return os.environ if env is None else env


# -- what is stored --------------------------------------------------------------------------------------------------


def logins(env: Environment | None = None) -> list[Login]:
    """Return the stored logins of all servers, sorted by URL."""
    by_url: dict[str, Login] = {}
    for path in (_path(env), _service_path(_environment(env))):
        remotes = _remotes(_read(path)) if path is not None else {}
        for url, entry in remotes.items():
            if (login := _login(url, entry)) is not None:
                by_url[login.url] = login
    return [by_url[url] for url in sorted(by_url)]


def stored(url: str, env: Environment | None = None) -> Login | None:
    """Return the stored login of one server; None if there is none."""
    return _stored(remote_url(url), _environment(env))


def _stored(url: str, env: Environment) -> Login | None:
    return next((login for login in logins(env) if login.url == url), None)


def _login(url: str, entry: Any) -> Login | None:
    try:
        known = remote_url(url)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    token, user, tokens = entry.get("token"), entry.get("user"), entry.get("tokens")
    return Login(
        url=known,
        user=user if isinstance(user, str) else None,
        token=token if isinstance(token, str) and is_token(token) else None,
        tokens={mark: text for mark, text in tokens.items() if isinstance(text, str) and is_token(text)}
        if isinstance(tokens, dict)
        else {},
    )


def stored_tokens(env: Environment | None = None) -> set[str]:
    """Return every token that is stored here, of any server: no event may contain one."""
    tokens = {token for login in logins(env) for token in (login.token, *login.tokens.values())}
    return {token for token in tokens if token is not None}


def store(url: str, token: str, user: str | None = None, env: Environment | None = None) -> None:
    """Store `token` as the login for that server, replacing the one before. Durable on return. Raises OSError."""

    def change(remotes: dict[str, Any], key: str) -> None:
        entry = _entry(remotes, key)
        remotes[key] = {**entry, "token": token, "user": user}

    _change(url, change, env)


def remember(url: str, token: str, env: Environment | None = None) -> str:
    """Store a token that a program was given, beside the login, and return its fingerprint.

    Durable on return. Writes nothing if it is stored already. Raises OSError.
    """
    mark = fingerprint(token)
    known = stored(url, env)
    if known is not None and known.tokens.get(mark) == token:
        return mark

    def change(remotes: dict[str, Any], key: str) -> None:
        entry = _entry(remotes, key)
        tokens = entry.get("tokens")
        remotes[key] = {**entry, "tokens": {**(tokens if isinstance(tokens, dict) else {}), mark: token}}

    _change(url, change, env)
    return mark


def forget(url: str, env: Environment | None = None) -> bool:
    """Remove all that is stored for that server; True if there was anything. Raises OSError."""
    found = False

    def change(remotes: dict[str, Any], key: str) -> None:
        nonlocal found
        found = remotes.pop(key, None) is not None

    _change(url, change, env)
    return found


def _entry(remotes: dict[str, Any], key: str) -> dict[str, Any]:
    entry = remotes.get(key)
    return entry if isinstance(entry, dict) else {"token": None, "user": None}


# -- the file --------------------------------------------------------------------------------------------------------


def _path(env: Environment | None) -> Path:
    return config_folder(env) / CREDENTIALS


def _service_path(env: Environment) -> Path | None:
    folder = env.get("CREDENTIALS_DIRECTORY", "")
    return Path(folder, SERVICE_CREDENTIALS) if folder else None


def _read(path: Path) -> Any:
    """Return the content of a file of logins; None if it is absent or unreadable (a warning says so)."""
    try:
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & _FOR_OTHERS:
                _warn_once(f"{path} can be read by other users; run: chmod 600 {path}")
            return json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _warn_once(f"{path} cannot be read ({error}); its logins are not used")
        return None


def _remotes(content: Any) -> dict[str, Any]:
    remotes = content.get("remotes") if isinstance(content, dict) else None
    return dict(remotes) if isinstance(remotes, dict) else {}


def _change(url: str, change: Callable[[dict[str, Any], str], None], env: Environment | None) -> None:
    """Read, change and replace the file, one process at a time."""
    path, wanted = _path(env), remote_url(url)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    turn = Turn(path.with_name(f".{CREDENTIALS}.lock"))
    turn.take(_WAIT_S)
    try:
        content = _read_to_change(path)
        remotes = _remotes(content)
        change(remotes, next((known for known in remotes if _same(known, wanted)), wanted))
        others = content if isinstance(content, dict) else {}
        replace_file(path, json.dumps({**others, "remotes": remotes}, indent=2).encode(), sync=True, private=True)
    finally:
        turn.give_back()


def _read_to_change(path: Path) -> Any:
    """Return the content; a damaged file is renamed first, so that the change does not destroy what it held."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        aside = path.with_name(f"{CREDENTIALS}.damaged")
        os.replace(path, aside)
        _warn_once(f"{path} is damaged ({error}); it was kept as {aside.name}, and begun anew")
        return None


def _same(known: str, wanted: str) -> bool:
    try:
        return remote_url(known) == wanted
    except ValueError:
        return False


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        log.warning("ml-dash: %s", text)
