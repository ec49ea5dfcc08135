"""Places of this user's files, URLs of servers, and switches from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ml_dash.errors import InvalidValue

PREFIX: Final = "ML_DASH_"


Environment = Mapping[str, str]


_TRUE: Final = frozenset({"1", "true", "yes", "on"})


_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def remote_url(text: str, label: str = "remote") -> str:
    """Return a server's URL in one spelling: scheme and host in lower case, no default port, no slash at the end.

    Raises `InvalidValue` unless it is an http or https URL with a host, without user info, query and
    fragment.
    """
    from urllib.parse import urlsplit

    hint = "write it like http://localhost:3000 or https://dash.example.org"
    shown = _without_secrets(text)
    if any(character <= " " or not character.isprintable() or character == "\\" for character in text):
        raise InvalidValue(f"{label} {shown!a} contains a space, backslash or control character", hint=hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidValue(f"{label} {shown!a} is not a URL", hint=hint) from None
    if "@" in parts.netloc:
        hint = "take the part before @ away, and give the token as api_key="
        raise InvalidValue(f"{label} {shown!a} contains user info", hint=hint)
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidValue(f"{label} {shown!a} does not begin with http:// or https://", hint=hint)
    if not parts.hostname or port == 0:
        raise InvalidValue(f"{label} {shown!a} names no host, or a port that cannot be", hint=hint)
    if "?" in text or "#" in text:
        raise InvalidValue(f"{label} {shown!a} contains a query or a fragment", hint=hint)
    host = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme]).removesuffix(":")
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """True if a URL names this machine: localhost or a loopback address."""
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    if host in ("localhost", "::1") or host.endswith(".localhost"):
        return True
    numbers = host.split(".")
    is_address = len(numbers) == 4 and all(number.isdecimal() and int(number) < 256 for number in numbers)
    return is_address and numbers[0] == "127"


def config_folder(env: Environment | None = None) -> Path:
    """Return the user's configuration folder for ml-dash; it may not exist."""
    environment = os.environ if env is None else env
    base = environment.get("XDG_CONFIG_HOME", "")
    # The base directory specification says to ignore a relative one.
    if not Path(base).is_absolute():
        base = str(Path(environment.get("HOME") or os.path.expanduser("~"), ".config"))  # noqa: PTH111
    return Path(base, "ml-dash")


def state_folder(env: Environment | None = None) -> Path:
    """Return the folder of this user's registrations, cursors and uploader state on this host; it may not exist.

    The first writable one of `XDG_STATE_HOME`, `~/.local/state`, `XDG_RUNTIME_DIR` and a private folder in the
    temporary one, so that a job without a home has a place too. If none is writable, the first, so that its error says
    why. Each host has its own folder, because all machines of a cluster often share the home folder.
    """
    import platform

    environment = os.environ if env is None else env
    host = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in platform.node().lower())
    below = Path("ml-dash", host.lstrip(".") or "localhost")
    home = str(Path(environment.get("HOME") or os.path.expanduser("~"), ".local", "state"))  # noqa: PTH111
    named = (environment.get("XDG_STATE_HOME", ""), home, environment.get("XDG_RUNTIME_DIR", ""))
    # The base directory specification says to ignore a relative one.
    folders = [Path(base, below) for base in named if Path(base).is_absolute()]
    for folder in folders:
        if _can_be_written(folder):
            return folder
    private = _private_folder(environment)
    if private is not None:
        return private / below
    return folders[0] if folders else Path(home, below)


def cache_folder(env: Environment | None = None) -> Path:
    """Return the folder for what can be made again; it may not exist. Everything in it may be deleted at any time.

    `XDG_CACHE_HOME`, else `~/.cache`; a private folder in the temporary one where neither can be written.
    """
    environment = os.environ if env is None else env
    base = environment.get("XDG_CACHE_HOME", "")
    # The base directory specification says to ignore a relative one.
    if not Path(base).is_absolute():
        base = str(Path(environment.get("HOME") or os.path.expanduser("~"), ".cache"))  # noqa: PTH111
    folder = Path(base, "ml-dash")
    if _can_be_written(folder):
        return folder
    private = _private_folder(environment)
    return private / "cache" if private is not None else folder


def _can_be_written(folder: Path) -> bool:
    """True if this user may write to a folder, or create it."""
    for parent in (folder, *folder.parents):
        try:
            if parent.is_dir():
                return os.access(parent, os.W_OK | os.X_OK)
            if parent.exists():
                return False
        except OSError:
            return False
    return False


def _private_folder(env: Environment) -> Path | None:
    """Return a private folder of this user in the temporary one; None if somebody else owns one of that name."""
    if not hasattr(os, "getuid"):
        return None
    import stat
    import tempfile

    folder = Path(env.get("TMPDIR") or tempfile.gettempdir(), f"ml-dash-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError:
        return None
    try:
        status = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if private else None


def disabled(env: Environment | None = None) -> bool:
    """True if `ML_DASH_DISABLED` switches recording off."""
    return flag("DISABLED", env)


def quiet(env: Environment | None = None) -> bool:
    """True if nothing should be printed: asked for, disabled, a child process, or not the first rank of a job."""
    environment = os.environ if env is None else env
    if flag("QUIET", env) or disabled(env):
        return True
    return any(_is_positive(environment.get(rank, "")) for rank in ("RANK", "SLURM_PROCID")) or _is_child()


def flag(name: str, env: Environment | None = None) -> bool:
    """Return the switch `ML_DASH_<name>`: 1, true, yes, on against 0, false, no, off, empty or unset."""
    variable = PREFIX + name
    text = (os.environ if env is None else env).get(variable, "")
    if text.strip().lower() in _TRUE:
        return True
    if text.strip().lower() in _FALSE:
        return False
    raise InvalidValue(f"{variable} is {text[:80]!a}", hint="set it to 1 or 0")


def _without_secrets(text: str) -> str:
    """Return a URL for a message: without user info and query, which often hold a token."""
    before, at, after = text.rpartition("@")
    scheme, separator, _ = before.partition("://")
    shown = f"{scheme if separator else ''}{separator}***@{after}" if at else text
    return shown.partition("?")[0]


def _is_positive(text: str) -> bool:
    return text.strip().isdecimal() and int(text) > 0


def _is_child() -> bool:
    """True if this process was started by `multiprocessing`, which is then loaded."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None
