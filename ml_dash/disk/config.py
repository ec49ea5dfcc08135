"""Settings of an experiment, from arguments and environment: checked, each with its source.

An argument wins, then the variable `ML_DASH_<NAME>`, then the default; an empty variable counts as unset.
The two paths go together: where one is an argument, the other is not taken from the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from ml_dash.errors import InvalidValue, UnsupportedType

PREFIX: Final = "ML_DASH_"
DEFAULT_LOCAL_PATH: Final = ".ml-dash"
DEFAULT_DURABILITY: Final = "interval"
DURABILITIES: Final = ("always", "interval", "os")

ARGUMENT: Final = "argument"
DEFAULT: Final = "default"

PathText = str | os.PathLike[str]
Environment = Mapping[str, str]

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class OperationMode(Enum):
    """Where a run goes: this machine, a server, or both. Its journal is written here in each case."""

    LOCAL = "local"
    REMOTE = "remote"
    HYBRID = "hybrid"


class Settings(NamedTuple):
    """Checked settings, fixed when the experiment object is made.

    `root` holds the documented folders and `store` the journals; both are absolute. `sources` tells for
    each setting: `argument`, `environment ML_DASH_...` or `default`.
    """

    root: Path
    store: Path
    mode: OperationMode
    durability: str
    local_path: str
    local_prefix: str | None = None
    remote: str | None = None
    user_name: str | None = None
    api_key: str | None = None
    sources: Mapping[str, str] = {}

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name not in ("api_key", "sources"))
        return f"Settings({', '.join(shown)})"

    # Where a setting came from makes no difference.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self[:-1] == other[:-1]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:-1])

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that must never be written anywhere."""
        return (self.api_key,) if self.api_key else ()


def resolve(
    local_path: PathText | None = None,
    local_prefix: PathText | None = None,
    remote: str | None = None,
    user_name: str | None = None,
    api_key: str | None = None,
    durability: str | None = None,
    env: Environment | None = None,
    cwd: PathText | None = None,
) -> Settings:
    """Return the settings from arguments and environment.

    Raises `InvalidValue` that names the argument or the variable, and `UnsupportedType`. Never contacts a
    server, and reads no file.
    """
    environment = os.environ if env is None else env
    choice = _Choice(environment)
    alone = local_path is None and local_prefix is None
    path = choice.path("local_path", local_path, from_environment=alone)
    prefix = choice.path("local_prefix", local_prefix, from_environment=alone)
    where = path or DEFAULT_LOCAL_PATH
    base = os.fspath(cwd) if cwd is not None else None
    if prefix is None:
        root = store = _absolute(where, base, choice.label("local_path"))
    else:
        root = _absolute(prefix, base, choice.label("local_prefix"))
        store = _absolute(where, str(root), choice.label("local_path"))
    url = choice.text("remote", remote)
    if url is not None:
        url = remote_url(url, choice.label("remote"))
    name = choice.user_name(user_name)
    key = choice.api_key(api_key)
    return Settings(
        root=root,
        store=store,
        mode=_mode(url, path or prefix),
        durability=choice.durability(durability),
        local_path=where,
        local_prefix=prefix,
        remote=url,
        user_name=name,
        api_key=key,
        sources=choice.sources,
    )


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


class _Choice:
    """A reader of settings, each from its argument or its variable; it remembers from which."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.sources: dict[str, str] = {}

    def take(self, name: str, argument: Any, from_environment: bool = True) -> Any:
        """Return the argument, else the variable's text, else None."""
        variable = PREFIX + name.upper()
        if argument is not None:
            self.sources[name] = ARGUMENT
            return argument
        found = self.environment.get(variable) if from_environment else None
        self.sources[name] = f"environment {variable}" if found else DEFAULT
        return found or None

    def label(self, name: str) -> str:
        """Return the name of a setting for messages: the argument, or the variable from which it came."""
        source = self.sources[name]
        return source.removeprefix("environment ") if source.startswith("environment") else name

    def text(self, name: str, argument: object) -> str | None:
        value = self.take(name, argument)
        if value is None:
            return None
        if not isinstance(value, str):
            raise UnsupportedType(f"{self.label(name)} is {type(value).__name__}, expected str")
        text = str.__str__(value)
        if not text:
            raise InvalidValue(f"{self.label(name)} is empty", hint="leave it out for the default")
        return text

    def path(self, name: str, argument: object, from_environment: bool) -> str | None:
        value = self.take(name, argument, from_environment)
        if value is None:
            return None
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(text, str):
            raise UnsupportedType(f"{self.label(name)} is {type(value).__name__}, expected str or a path")
        if not text or "\0" in text:
            raise InvalidValue(f"{self.label(name)} is {text[:80]!a}", hint="give the path of a folder")
        return str.__str__(text)

    def user_name(self, argument: object) -> str | None:
        text = self.text("user_name", argument)
        if text is not None and (len(text) > 200 or not text.isprintable() or not text.strip()):
            hint = "use up to 200 characters of text, without control characters"
            raise InvalidValue(f"{self.label('user_name')} is {text[:80]!a}", hint=hint)
        return text

    def api_key(self, argument: object) -> str | None:
        text = self.text("api_key", argument)
        if text is not None and not is_token(text):
            # The key itself is never shown.
            found = "contains a space or a non-ASCII character"
            raise InvalidValue(f"{self.label('api_key')} {found}", hint="give the token as it was issued")
        return text

    def durability(self, argument: object) -> str:
        text = self.text("durability", argument) or DEFAULT_DURABILITY
        if text not in DURABILITIES:
            hint = 'use "always", "interval" or "os"'
            raise InvalidValue(f"{self.label('durability')} is {text[:80]!a}", hint=hint)
        return text


def _mode(url: str | None, path: str | None) -> OperationMode:
    if url is None:
        return OperationMode.LOCAL
    return OperationMode.REMOTE if path is None else OperationMode.HYBRID


def _absolute(text: str, base: str | None, label: str) -> Path:
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises where there is no home
    if expanded.startswith("~"):
        hint = f"write ./{text[:80]} for a folder of that name" if text != "~" else "set HOME"
        raise InvalidValue(f"{label} {text[:80]!a} has no home folder to stand for", hint=hint)
    full = Path(base or _working_directory(expanded, label), expanded)
    # `a/../b` is another folder than `b` where `a` is a link: only the file system can tell.
    return Path(os.path.realpath(full)) if ".." in full.parts else full


def _working_directory(path: str, label: str) -> str:
    if Path(path).is_absolute():
        return path
    try:
        return str(Path.cwd())
    except OSError as error:
        problem = "is relative, and the working directory is gone"
        raise InvalidValue(f"{label} {path[:80]!a} {problem}", hint="give an absolute path") from error


def _without_secrets(text: str) -> str:
    """Return a URL for a message: without user info and query, which often hold a token."""
    before, at, after = text.rpartition("@")
    scheme, separator, _ = before.partition("://")
    shown = f"{scheme if separator else ''}{separator}***@{after}" if at else text
    return shown.partition("?")[0]


def is_token(text: str) -> bool:
    """Can this be a token: ASCII that stands in one line of a header, without spaces?"""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _is_positive(text: str) -> bool:
    return text.strip().isdecimal() and int(text) > 0


def _is_child() -> bool:
    """True if this process was started by `multiprocessing`, which is then loaded."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None
