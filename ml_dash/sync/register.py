"""Registrations of this user's journals for upload, their progress, and the start of `ml-dash-syncd`.

Everything is a small file in the state folder (see `config.state_folder`): a process writes `registered/<key>.json`,
the uploader answers in `cursors/<key>.json`. So no call here talks to a network, or waits for another process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..disk.config import Environment, Settings, flag, remote_url, state_folder
from ..disk.durable import replace_file
from ..disk.lock import Liveness, probe
from ..errors import InvalidValue, JournalError
from ..journal.segment import read_identity
from . import cursor as cursors
from . import login
from .cursor import Cursor

log = logging.getLogger("ml_dash")

REGISTERED: Final = "registered"
CURSORS: Final = "cursors"
LOCK: Final = "syncd.lock"
STATUS: Final = "syncd.json"
LOG: Final = "syncd.log"
AUTOSYNC: Final = "ML_DASH_AUTOSYNC"
EXIT_WAIT: Final = "ML_DASH_EXIT_WAIT"
EXEC: Final = "ML_DASH_EXEC"
"""Set by `ml-dash-syncd exec` for the job that it runs."""

IDLE_EXIT_S: Final = 600
_TRY_EVERY_S: Final = 60.0
_COMING_UP_S: Final = 10.0
# The uploader signs in with what is stored, and must not die at a step that a test chose for the process that records.
_NOT_PASSED_ON: Final = ("ML_DASH_API_KEY", "ML_DASH_FAIL", EXEC)


@dataclass(frozen=True, slots=True)
class Registration:
    """One journal that goes to one server under one identity, which it keeps for ever.

    The identity is the token whose fingerprint is `login`, else the user named `user`. With neither it is unclaimed:
    nothing is sent until somebody claims it. `id` is the journal's own, in hex: another one may come to be at its path.
    """

    journal: str
    remote: str
    user: str | None = None
    login: str | None = None
    id: str | None = None

    @property
    def key(self) -> str:
        """The name of its files."""
        return registration_key(self.journal, self.remote, self.user, self.login)

    @property
    def is_claimed(self) -> bool:
        """Is it bound to an identity?"""
        return self.user is not None or self.login is not None

    def tokens(self, env: Environment | None = None) -> list[str]:
        """The tokens of its identity, the one to try first in front; none while it is unclaimed."""
        return login.tokens_for(self.remote, self.user, self.login, env) if self.is_claimed else []

    def identity(self, env: Environment | None = None) -> str:
        """Under which identity it goes, for messages: a token by its last four characters, or a user."""
        if self.login is not None:
            token = next(iter(self.tokens(env)), None)
            return f"the token ending in {token[-4:]}" if token is not None else f"the token {self.login}"
        return f"user {self.user}" if self.user is not None else "nobody yet"

    def has_login(self, env: Environment | None = None) -> bool:
        """Is a token of its identity stored here, or can one be signed? Signs nothing."""
        return self.is_claimed and login.has_login(self.remote, self.user, self.login, env)


def registration_key(journal: str | os.PathLike[str], remote: str, user: str | None, mark: str | None = None) -> str:
    """What names a registration: the same for the same journal, server and identity."""
    text = f"{os.fspath(journal)}\0{remote}\0{user or ''}" + (f"\0{mark}" if mark else "")
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


# -- registrations ---------------------------------------------------------------------------------------------------


def registered_folder(env: Environment | None = None) -> Path:
    """Where registrations are; it may not exist."""
    return state_folder(env) / REGISTERED


def cursors_folder(env: Environment | None = None) -> Path:
    """Where the uploader keeps its cursors; it may not exist."""
    return state_folder(env) / CURSORS


def lock_path(env: Environment | None = None) -> Path:
    """The lock that the running uploader holds."""
    return state_folder(env) / LOCK


def status_path(env: Environment | None = None) -> Path:
    """The uploader's last words about itself."""
    return state_folder(env) / STATUS


def log_path(env: Environment | None = None) -> Path:
    """Where an uploader that was started in the background says what it does."""
    return state_folder(env) / LOG


def register(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """Ask for the upload of a journal to `settings.remote` under the identity that the settings name.

    A token given in code or by the environment is kept beside the stored logins, and is the only one used for this
    journal. Without token and user name, the journal is bound to whoever is logged in there now; with no login either,
    it stays unclaimed. Writes nothing where this was asked for before. Raises OSError if the disk refuses.
    """
    assert settings.remote is not None
    wanted = bind(journal, settings.remote, settings.user_name, settings.api_key, env)
    write(wanted, env)
    return wanted


def register_again(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """The registration under which a journal that is continued goes on.

    Where the settings name no identity, the one it was registered with stays, unclaimed too: whoever is logged in by
    now does not take over what was recorded before. Of several, the one of the present login. Raises OSError.
    """
    wanted = asking(journal, settings, env)
    write(wanted, env)
    return wanted


def asking(journal: Path, settings: Settings, env: Environment | None = None) -> Registration:
    """The identity under which a server is asked about a journal, which need not be here: nothing is registered by it.

    The one that the settings name; else the one that the journal is registered with; else whoever is logged in now.
    """
    assert settings.remote is not None
    token, user = settings.api_key, settings.user_name
    if token is None and user is None:
        there = of_journal(journal, by_journal(registrations(env)), env)
        known = [one for one in there if one.remote == settings.remote]
        if known:
            present = login.stored(settings.remote, env)
            return min(known, key=lambda one: (not _is_of(one, present), not one.is_claimed))
    return bind(journal, settings.remote, user, token, env)


def _is_of(registration: Registration, present: login.Login | None) -> bool:
    """Is it bound to the identity that is logged in now?"""
    if present is None or present.token is None:
        return False
    if registration.login is not None:
        return registration.login == login.fingerprint(present.token)
    return registration.user is not None and registration.user == present.user


def bind(
    journal: Path, remote: str, user: str | None, token: str | None = None, env: Environment | None = None
) -> Registration:
    """The registration of a journal under the identity of `token`, else `user`, else whoever is logged in there now.

    Unclaimed where there is none of the three. Nothing is registered yet. Raises OSError where a token cannot be kept.
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
    # Nobody asked the server whose token that is. Kept under its fingerprint, it stays the same when the login changes.
    return Registration(where, remote, None, login.remember(remote, stored.token, env), itself)


def _id_of(journal: Path) -> str | None:
    """The id of the journal that is at a path now, in hex; None where that cannot be read."""
    try:
        return read_identity(journal).journal.hex()
    except (OSError, JournalError):
        return None


def is_of(registration: Registration, journal: str | None, env: Environment | None = None) -> bool:
    """Was it made for the journal of that id, and not for one that was at the path before?

    As it is written down now, for it may be made anew meanwhile. One of an older version has no id: its cursor tells,
    once something was sent. True where nothing tells.
    """
    written = _registration(_json(registered_folder(env) / f"{registration.key}.json")) or registration
    known = written.id or cursors.journal_of(_cursor_path(registration, env))
    return known is None or journal is None or known == journal


def write(registration: Registration, env: Environment | None = None) -> bool:
    """Write a registration down; False if it was there already. Raises OSError."""
    folder = registered_folder(env)
    path = folder / f"{registration.key}.json"
    document = {
        "journal": registration.journal, "remote": registration.remote, "user": registration.user,
        "login": registration.login, "id": registration.id,
    }  # fmt: skip
    data = json.dumps(document, indent=1).encode()
    with contextlib.suppress(FileNotFoundError):
        # Compared, not only looked for: a power cut may have left an empty one.
        if path.read_bytes() == data:
            return False
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    replace_file(path, data, private=True)
    return True


def registrations(env: Environment | None = None) -> list[Registration]:
    """Everything that is registered on this host, by journal and server; what cannot be read is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in registered_folder(env).iterdir():
            registration = _registration(_json(path)) if path.suffix == ".json" else None
            if registration is None:
                continue
            if registration.key == path.stem:
                found.append(registration)
            elif path.stem == registration_key(registration.journal, registration.remote, registration.user):
                # Version 0.1 left the token out of the name.
                _rename(registration, path.stem, env)
                found.append(registration)
    return sorted(found, key=lambda one: (one.journal, one.remote, one.user or ""))


def _rename(registration: Registration, old_key: str, env: Environment | None) -> None:
    """Give the files of a registration their present name; another process may be doing the same."""
    for folder in (cursors_folder(env), registered_folder(env)):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / f"{old_key}.json", folder / f"{registration.key}.json")


def by_journal(known: Iterable[Registration]) -> dict[str, list[Registration]]:
    """The registrations of each journal, by its path without links: it may have been reached by another one."""
    found: dict[str, list[Registration]] = {}
    for one in known:
        found.setdefault(os.path.realpath(one.journal), []).append(one)
    return found


def of_journal(
    journal: Path, known: Mapping[str, list[Registration]], env: Environment | None = None
) -> list[Registration]:
    """Those of `known` (see `by_journal`) that are the journal's; not those of one that was at its path before."""
    there = known.get(os.path.realpath(journal), [])
    itself = _id_of(journal) if there else None
    return [one for one in there if is_of(one, itself, env)]


def _registration(content: Any) -> Registration | None:
    if not isinstance(content, dict):
        return None
    texts = [content.get(name) for name in ("journal", "remote", "user", "login", "id")]
    journal, remote, user, mark, itself = (text if isinstance(text, str) else None for text in texts)
    return Registration(journal, remote, user, mark, itself) if journal and remote else None


def unclaimed(remote: str, env: Environment | None = None) -> list[Registration]:
    """What was recorded for that server while nobody was logged in there."""
    return [one for one in registrations(env) if one.remote == remote and not one.is_claimed]


def claim(registration: Registration, claimed: Registration, env: Environment | None = None) -> Registration:
    """Put `claimed`, which names an identity, in the place of an unclaimed registration; `claimed`. Raises OSError."""
    assert claimed.is_claimed
    write(claimed, env)
    # Only now: a kill between the two leaves both, and the unclaimed one sends nothing.
    unregister(registration, env)
    return claimed


def meant(target: str, env: Environment | None = None) -> list[Registration]:
    """The registrations that a text names: a server's URL, `project/name`, or the path of a folder or journal."""
    known = registrations(env)
    if "://" in target:
        url = remote_url(target)
        return [one for one in known if one.remote == url]
    path = os.path.realpath(target)
    return [
        one
        for one in known
        if target == "/".join(Path(one.journal).parts[-3:-1])
        or path in (os.path.realpath(one.journal), os.path.realpath(Path(one.journal).parent))
    ]


def unregister(registration: Registration, env: Environment | None = None) -> None:
    """Ask for it no longer; its cursor goes too. Raises OSError."""
    (registered_folder(env) / f"{registration.key}.json").unlink(missing_ok=True)
    _cursor_path(registration, env).unlink(missing_ok=True)


# -- cursors ---------------------------------------------------------------------------------------------------------


def cursor_of(registration: Registration, env: Environment | None = None) -> Cursor | None:
    """How far the uploader is with a registration; None before it has begun."""
    return cursors.load(_cursor_path(registration, env), registration.id)


def _cursor_path(registration: Registration, env: Environment | None) -> Path:
    return cursors_folder(env) / f"{registration.key}.json"


def _json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or none that can be read now."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


# -- the uploader ----------------------------------------------------------------------------------------------------


def daemon_runs(env: Environment | None = None) -> bool:
    """Does an uploader of this user run on this host, as far as its lock tells?"""
    return probe(lock_path(env)) is Liveness.ALIVE


def in_exec() -> bool:
    """Is this process part of a job that `ml-dash-syncd exec` runs, and sends when it has ended?"""
    return EXEC in os.environ


def daemon_comes_up() -> bool:
    """Has this process launched an uploader so lately that it may not have taken its lock yet?"""
    launched = _attempts.launched
    return launched is not None and time.monotonic() - launched < _COMING_UP_S


def autosync(env: Environment | None = None) -> bool:
    """May a process start the uploader? Off with `ML_DASH_AUTOSYNC=0`. Raises InvalidValue for what makes no sense."""
    environment = os.environ if env is None else env
    return not environment.get(AUTOSYNC) or flag("AUTOSYNC", environment)


def exit_wait_s(env: Environment | None = None) -> float:
    """How long a process waits at its end for what is not sent. Raises InvalidValue for what is no such number."""
    text = (os.environ if env is None else env).get(EXIT_WAIT, "").strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidValue(f"{EXIT_WAIT} is {text[:80]!a}", hint="give a number of seconds, like 30")
    return seconds


class _Attempts:
    """When this process last tried to start the uploader."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.last = -_TRY_EVERY_S
        self.told = False
        self.forbidden = False
        self.thread: threading.Thread | None = None
        self.launched: float | None = None

    def due(self) -> bool:
        """One attempt a minute."""
        now = time.monotonic()
        with self.guard:
            if now - self.last < _TRY_EVERY_S:
                return False
            self.last = now
            return True


_attempts = _Attempts()


def never_start() -> None:
    """From now on this process starts no uploader: it was forked by one that may."""
    global _attempts
    _attempts = _Attempts()
    _attempts.forbidden = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=never_start)


def start_daemon(env: Environment | None = None, *, alone: bool = False) -> bool:
    """Start the uploader in the background if none runs; True if one runs or may come up now.

    Never waits and never raises: a thread starts a process of its own session that has none of our descriptors and is
    not our child. Tried once a minute; not from a forked child or one of `multiprocessing`, and of the ranks of a job
    only by the first (with `alone`, the first of this machine).
    """
    environment = os.environ if env is None else env
    if daemon_runs(environment):
        return True
    try:
        if not autosync(environment) or not _is_the_one(environment, alone):
            return False
    except ValueError as error:
        _tell(f"ml-dash-syncd was not started: {error}")
        return False
    if not _attempts.due():
        return True
    thread = threading.Thread(target=_start, args=(dict(environment),), name="ml-dash-start", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _tell(f"ml-dash-syncd was not started: {error}; data is kept here")
        return False
    _attempts.thread = thread
    return True


def finish_start(wait_s: float) -> None:
    """At the end of a process: a start that is under way is not cut off; waits for at most `wait_s` seconds."""
    thread = _attempts.thread
    if thread is not None:
        thread.join(wait_s)


def _is_the_one(env: Environment, alone: bool) -> bool:
    process = sys.modules.get("multiprocessing.process")
    if _attempts.forbidden or (process is not None and process.parent_process() is not None):
        return False
    first = not any(_number(env.get(name)) for name in ("RANK", "SLURM_PROCID"))
    here = [number for name in ("LOCAL_RANK", "SLURM_LOCALID") if (number := _number(env.get(name))) is not None]
    return first or (alone and bool(here) and not any(here))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _start(env: dict[str, str]) -> None:
    try:
        program = _program()
        folder = state_folder(env)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        output = os.open(folder / LOG, flags, 0o600)
        try:
            _launch([*program, "run", "--idle-exit", str(IDLE_EXIT_S)], output, env)
        finally:
            os.close(output)
        _attempts.launched = time.monotonic()
    except (OSError, ValueError) as error:
        _tell(f"ml-dash-syncd was not started: {error}; data is kept here. Start it with: ml-dash-syncd run")


def _launch(command: list[str], output: int, env: dict[str, str]) -> None:
    """Run a command that outlives this process and is nobody's child here."""
    import subprocess

    kept = {name: value for name, value in env.items() if name not in _NOT_PASSED_ON}
    shell = "/bin/sh"
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        flags = ("DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW")
        detached = {"creationflags": sum(getattr(subprocess, name, 0) for name in flags[:2])}
    elif os.access(shell, os.X_OK):
        # The shell ends at once, and the command is left to init: no zombie, and nothing that the program's own
        # `os.wait()`, or whoever ends all its children, could meet.
        command = [shell, "-c", '"$@" &', "sh", *command]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=os.path.abspath(os.sep),  # noqa: PTH100
        env=kept, close_fds=True, **detached,
    )  # fmt: skip
    if command[0] == shell:
        process.wait()
    else:
        process.returncode = 0  # nobody waits for it, and that is no reason for a warning


def _program() -> list[str]:
    """The uploader in the same environment. An interpreter inside another program may not be what can run it."""
    name = Path(sys.executable or "").name.lower()
    if "python" in name or "pypy" in name:
        return [sys.executable, "-m", "ml_dash_syncd"]
    folder = Path(sys.prefix, "Scripts" if os.name == "nt" else "bin")
    for python in ("python3", "python", "python.exe"):
        if (folder / python).exists():
            return [str(folder / python), "-m", "ml_dash_syncd"]
    raise FileNotFoundError(f"no Python interpreter in {folder}")


def _tell(text: str) -> None:
    if not _attempts.told:
        _attempts.told = True
        log.warning("ml-dash: %s", text)
