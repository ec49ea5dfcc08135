"""Registrations of journals for upload: one file each, in the state folder of this user on this host.

Everything is a small file in the state folder (see `config.state_folder`): a process writes `registered/<key>.json`,
the uploader answers in `cursors/<key>.json`. So no call here talks to a network, or waits for another process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..disk.durable import replace_file
from ..disk.places import Environment, remote_url, state_folder
from ..disk.settings import Settings
from ..errors import JournalError
from ..journal.segment import read_identity
from . import cursor as cursors
from . import login
from .cursor import Cursor

REGISTERED: Final = "registered"
CURSORS: Final = "cursors"


@dataclass(frozen=True, slots=True)
class Registration:
    """A journal to be sent to a server under an identity, which stays the same for ever.

    The identity is the token whose fingerprint is `login`, else the user named `user`. With neither it is unclaimed:
    nothing is sent until somebody claims it. `id` is the journal's own id, in hex: another
    journal may later lie at the same path.
    """

    journal: str
    remote: str
    user: str | None = None
    login: str | None = None
    id: str | None = None

    @property
    def key(self) -> str:
        """The name of its files in the state folder, without extension."""
        return registration_key(self.journal, self.remote, self.user, self.login)

    @property
    def is_claimed(self) -> bool:
        """True if it is bound to an identity."""
        return self.user is not None or self.login is not None

    def tokens(self, env: Environment | None = None) -> list[str]:
        """Return the tokens of its identity, the one to try first in front; an empty list while it is unclaimed."""
        return login.tokens_for(self.remote, self.user, self.login, env) if self.is_claimed else []

    def identity(self, env: Environment | None = None) -> str:
        """Return its identity as text for messages: a user, or the last four characters of a token."""
        if self.login is not None:
            token = next(iter(self.tokens(env)), None)
            return f"the token ending in {token[-4:]}" if token is not None else f"the token {self.login}"
        return f"user {self.user}" if self.user is not None else "nobody yet"

    def has_login(self, env: Environment | None = None) -> bool:
        """True if a token of its identity is stored here, or could be signed. Signs nothing."""
        return self.is_claimed and login.has_login(self.remote, self.user, self.login, env)

    def obstacle(self) -> str | None:
        """Return why nothing can be sent for it, and what to do; None if it can."""
        if not self.is_claimed:
            return f"nobody has claimed it for {self.remote}; run: ml-dash login {self.remote}, or ml-dash push"
        if not self.has_login():
            return f"there is no login for {self.remote}; run: ml-dash login {self.remote}"
        return None


def registration_key(journal: str | os.PathLike[str], remote: str, user: str | None, mark: str | None = None) -> str:
    """Return the name of a registration's files: a hash of journal, server and identity. `mark` is a fingerprint."""
    text = f"{os.fspath(journal)}\0{remote}\0{user or ''}" + (f"\0{mark}" if mark else "")
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


# -- registrations ---------------------------------------------------------------------------------------------------


def registered_folder(env: Environment | None = None) -> Path:
    """Return the folder of registrations; it may not exist."""
    return state_folder(env) / REGISTERED


def cursors_folder(env: Environment | None = None) -> Path:
    """Return the folder where the uploader keeps its cursors; it may not exist."""
    return state_folder(env) / CURSORS


def register(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """Register a journal for upload to `settings.remote` under the identity that the settings name.

    A token given in code or by the environment is kept beside the stored logins, and is the only one used for this
    journal. Without token and user name, the journal is bound to whoever is logged in there now; with no login either,
    it stays unclaimed. Writes nothing if it is registered already. Raises OSError if the disk refuses.
    """
    assert settings.remote is not None
    wanted = bind(journal, settings.remote, settings.user_name, settings.api_key, env)
    write(wanted, env)
    return wanted


def register_again(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """Register a journal that is continued, and return its registration.

    Where the settings name no identity, the earlier registration stays, even an unclaimed one: whoever is logged in now
    does not take over what was recorded before. Of several, the one of the present login is taken. Raises OSError.
    """
    wanted = registration_for(journal, settings, env)
    write(wanted, env)
    return wanted


def registration_for(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """Return the registration under whose identity a server is asked about a journal; nothing is registered.

    The journal need not exist. The identity is the one that the settings name, else the one that the journal is
    registered with, else whoever is logged in now.
    """
    assert settings.remote is not None
    token, user = settings.api_key, settings.user_name
    if token is None and user is None:
        there = of_journal(journal, by_journal(read_all(env)), env)
        candidates = [registration for registration in there if registration.remote == settings.remote]
        if candidates:
            present = login.stored(settings.remote, env)
            return min(candidates, key=lambda known: (not _is_of(known, present), not known.is_claimed))
    return bind(journal, settings.remote, user, token, env)


def _is_of(registration: Registration, present: login.Login | None) -> bool:
    """True if it is bound to the identity of the login `present`."""
    if present is None or present.token is None:
        return False
    if registration.login is not None:
        return registration.login == login.fingerprint(present.token)
    return registration.user is not None and registration.user == present.user


def bind(
    journal: Path, remote: str, user: str | None, token: str | None = None, env: Environment | None = None
) -> Registration:
    """Make a registration under the identity of `token`, else `user`, else whoever is logged in there now.

    Unclaimed without any of the three. Does not write it. Raises OSError if a token cannot be stored.
    """
    where = os.path.abspath(journal)  # noqa: PTH100 - links stay
    itself = _id_of(journal)
    if token is not None:
        return Registration(where, remote, user, login.remember(remote, token, env), itself)
    if user is not None:
        return Registration(where, remote, user, None, itself)
    stored = login.stored(remote, env)
    if stored is None or stored.token is None:
        return Registration(where, remote, None, None, itself)
    if stored.user is not None:
        return Registration(where, remote, stored.user, None, itself)
    # The token was stored without asking the server for its user. Under its fingerprint it outlives a change of login.
    return Registration(where, remote, None, login.remember(remote, stored.token, env), itself)


def _id_of(journal: Path) -> str | None:
    """Return the id, in hex, of the journal that is at a path now; None if it cannot be read."""
    try:
        return read_identity(journal).journal.hex()
    except (OSError, JournalError):
        return None


def is_of(registration: Registration, journal: str | None, env: Environment | None = None) -> bool:
    """True if a registration was made for the journal of that id, not for one that was at the path before.

    Reads it again, since it may have been replaced meanwhile. Registrations of older versions have no id: the cursor
    has it, once something was sent. True where no id is known.
    """
    written = _registration(_json(registered_folder(env) / f"{registration.key}.json")) or registration
    known = written.id or cursors.journal_of(_cursor_path(registration, env))
    return known is None or journal is None or known == journal


def write(registration: Registration, env: Environment | None = None) -> bool:
    """Write the file of a registration; False if it was there already. Raises OSError."""
    folder = registered_folder(env)
    path = folder / f"{registration.key}.json"
    document = {
        "journal": registration.journal, "remote": registration.remote, "user": registration.user,
        "login": registration.login, "id": registration.id,
    }  # fmt: skip
    data = json.dumps(document, indent=1).encode()
    with contextlib.suppress(FileNotFoundError):
        # The content is compared: a power cut may have left an empty file.
        if path.read_bytes() == data:
            return False
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    replace_file(path, data, private=True)
    return True


def read_all(env: Environment | None = None) -> list[Registration]:
    """Return all registrations on this host, sorted by journal and server; unreadable ones are left out."""
    registrations = []
    with contextlib.suppress(FileNotFoundError):
        for path in registered_folder(env).iterdir():
            registration = _registration(_json(path)) if path.suffix == ".json" else None
            if registration is None:
                continue
            if registration.key == path.stem:
                registrations.append(registration)
            elif path.stem == registration_key(registration.journal, registration.remote, registration.user):
                # Version 0.1 left the token out of the name.
                _rename(registration, path.stem, env)
                registrations.append(registration)
    return sorted(registrations, key=lambda known: (known.journal, known.remote, known.user or ""))


def _rename(registration: Registration, old_key: str, env: Environment | None) -> None:
    """Rename the files of a registration from their old name; another process may be doing the same."""
    for folder in (cursors_folder(env), registered_folder(env)):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / f"{old_key}.json", folder / f"{registration.key}.json")


def by_journal(known: Iterable[Registration]) -> dict[str, list[Registration]]:
    """Group registrations by the real path of their journal: the recorded one may lead there by links."""
    grouped: dict[str, list[Registration]] = {}
    for registration in known:
        grouped.setdefault(os.path.realpath(registration.journal), []).append(registration)
    return grouped


def of_journal(
    journal: Path, known: Mapping[str, list[Registration]], env: Environment | None = None
) -> list[Registration]:
    """Return those of `known` (see `by_journal`) that were made for the journal that is at this path now."""
    there = known.get(os.path.realpath(journal), [])
    itself = _id_of(journal) if there else None
    return [registration for registration in there if is_of(registration, itself, env)]


def _registration(content: Any) -> Registration | None:
    if not isinstance(content, dict):
        return None
    texts = [content.get(name) for name in ("journal", "remote", "user", "login", "id")]
    journal, remote, user, mark, itself = (text if isinstance(text, str) else None for text in texts)
    return Registration(journal, remote, user, mark, itself) if journal and remote else None


def unclaimed(remote: str, env: Environment | None = None) -> list[Registration]:
    """Return the registrations for that server that are bound to no identity yet."""
    known = read_all(env)
    return [registration for registration in known if registration.remote == remote and not registration.is_claimed]


def claim(registration: Registration, claimed: Registration, env: Environment | None = None) -> Registration:
    """Replace an unclaimed registration by `claimed`, which names an identity; return `claimed`. Raises OSError."""
    assert claimed.is_claimed
    write(claimed, env)
    # Written before the old one is removed: a kill in between leaves both, and the unclaimed one sends nothing.
    unregister(registration, env)
    return claimed


def matching(target: str, env: Environment | None = None) -> list[Registration]:
    """Return the registrations that `target` names: a server's URL, `project/name`, or a path of folder or journal."""
    known = read_all(env)
    if "://" in target:
        url = remote_url(target)
        return [registration for registration in known if registration.remote == url]
    path = os.path.realpath(target)
    return [
        registration
        for registration in known
        if target == "/".join(Path(registration.journal).parts[-3:-1])
        or path in (os.path.realpath(registration.journal), os.path.realpath(Path(registration.journal).parent))
    ]


def unregister(registration: Registration, env: Environment | None = None) -> None:
    """Remove a registration and its cursor. Raises OSError."""
    (registered_folder(env) / f"{registration.key}.json").unlink(missing_ok=True)
    _cursor_path(registration, env).unlink(missing_ok=True)


# -- cursors ---------------------------------------------------------------------------------------------------------


def cursor_of(registration: Registration, env: Environment | None = None) -> Cursor | None:
    """Return the cursor of a registration; None before the uploader has begun."""
    return cursors.load(_cursor_path(registration, env), registration.id)


def _cursor_path(registration: Registration, env: Environment | None) -> Path:
    return cursors_folder(env) / f"{registration.key}.json"


def _json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is absent or unreadable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


# -- the uploader ----------------------------------------------------------------------------------------------------
