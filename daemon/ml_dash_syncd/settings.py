"""Settings of the daemon: options, then `syncd.toml`, checked; an error names the key and the accepted values."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ml_dash.disk.config import config_folder, remote_url
from ml_dash.errors import InvalidValue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE: Final = "syncd.toml"
_KEYS: Final = {
    "stores": "a list of folders",
    "remote": "the URL of a server",
    "user": "a user's name",
    "listen": "a port on loopback, 0 for a free one",
}
_VARIABLES: Final = {"remote": "ML_DASH_REMOTE", "user": "ML_DASH_USER_NAME"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Stores whose journals are all sent, the server and the user for those; the port of `/-/healthy` (None: none)."""

    stores: tuple[Path, ...] = ()
    remote: str | None = None
    user: str | None = None
    listen: int | None = None
    file: Path | None = None
    """The settings file that was read, if there is one."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Name of each setting → where its value comes from: an option, a file, or a variable."""


def read(
    *,
    stores: Sequence[Path] = (),
    remote: str | None = None,
    user: str | None = None,
    listen: int | None = None,
    config: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in use: options, then `config` (default: `syncd.toml` beside the logins), then variables.

    Raises InvalidValue, naming the key and the accepted values, for a wrong one, for stores without a remote, and if
    `config` is given and missing.
    """
    environment = os.environ if env is None else env
    path = config if config is not None else config_folder(environment) / FILE
    found = _file(path, needed=config is not None)
    where = path if found is not None else None
    values = found or {}
    chosen = tuple(stores) or tuple(_stores(values.get("stores", []), path))
    url = remote or _text(values, "remote", path) or environment.get("ML_DASH_REMOTE") or None
    if chosen and url is None:
        hint = f"give --remote URL, or set remote in {path}"
        raise InvalidValue("there are stores to send, but no remote", hint=hint)
    options = {"stores": stores, "remote": remote, "user": user, "listen": listen}
    return Settings(
        stores=tuple(Path(os.path.abspath(store)) for store in chosen),  # noqa: PTH100 - links stay
        remote=remote_url(url, "remote") if url is not None else None,
        user=user or _text(values, "user", path) or environment.get("ML_DASH_USER_NAME") or None,
        listen=listen if listen is not None else _port(values.get("listen"), path),
        file=where,
        sources=_sources(options, values, path, environment),
    )


def _sources(
    options: Mapping[str, Any], values: Mapping[str, Any], path: Path, env: Mapping[str, str]
) -> dict[str, str]:
    found = {}
    for name, given in options.items():
        variable = _VARIABLES.get(name, "")
        if given is not None and given != ():
            found[name] = "an option"
        elif name in values:
            found[name] = str(path)
        elif env.get(variable):
            found[name] = variable
    return found


def _file(path: Path, *, needed: bool) -> dict[str, Any] | None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            raise InvalidValue(f"there is no settings file {path}") from None
        return None
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{path} cannot be read: {error}", hint="it must be a readable TOML file") from None
    for key in content:
        if key not in _KEYS:
            known = ", ".join(f"{name} ({what})" for name, what in _KEYS.items())
            raise InvalidValue(f"{path} has a key {key!r}", hint=f"it takes {known}")
    return content


def _wrong(path: Path, key: str, value: Any) -> InvalidValue:
    return InvalidValue(f"{path}: {key} is {value!r:.80}", hint=f"give {_KEYS[key]}")


def _stores(value: Any, path: Path) -> list[Path]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(path, "stores", value)
    return [_folder(path, item) for item in value]


def _folder(path: Path, text: str) -> Path:
    try:
        return path.parent / Path(text).expanduser()
    except RuntimeError:
        raise _wrong(path, "stores", text) from None


def _text(values: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = values.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise _wrong(path, key, value)
    return value


def _port(value: Any, path: Path) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65_535):
        raise _wrong(path, "listen", value)
    return value
