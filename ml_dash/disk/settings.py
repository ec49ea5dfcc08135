"""Settings of an experiment, from arguments and environment: checked, each with its source.

An argument wins, then the variable `ML_DASH_<NAME>`, then the default; an empty variable counts as unset.
The two paths go together: where one is an argument, the other is not taken from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from ml_dash.errors import InvalidValue, UnsupportedType

from .places import PREFIX, Environment, remote_url

DEFAULT_LOCAL_PATH: Final = ".ml-dash"
DEFAULT_DURABILITY: Final = "interval"
DURABILITIES: Final = ("always", "interval", "os")

ARGUMENT: Final = "argument"
DEFAULT: Final = "default"

PathText = str | os.PathLike[str]


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


def is_token(text: str) -> bool:
    """Can this be a token: ASCII that stands in one line of a header, without spaces?"""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
