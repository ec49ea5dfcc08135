"""Settings of a server, from options and environment: checked, unsafe combinations refused."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..core.protocol import DEVELOPMENT_SECRET
from ..disk.places import state_folder
from ..errors import InvalidValue

DATA_VARIABLE: Final = "ML_DASH_DATA"
DEFAULT_PORT: Final = 3000
SECRET_BYTES: Final = 32
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS_BYTES: Final = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_S3_VARIABLES: Final = (
    "S3_ENDPOINT", "S3_REGION", "S3_FORCE_PATH_STYLE", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_PUBLIC_URL",
)  # fmt: skip
_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("0", "false", "no", "off")


@dataclass(frozen=True)
class S3Settings:
    """Where objects are, in a bucket of S3 or of what speaks its protocol; `repr` shows no secret.

    Without `endpoint` it is AWS; without `access_key` credentials are found as AWS's own tools find them. `path_style`:
    the bucket is named in the path and not in the host. `public_url` is where browsers reach the same service.
    """

    bucket: str
    endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool = False
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    public_url: str | None = None


VARIABLES: Final = frozenset(
    (
        DATA_VARIABLE, "PORT", "JWT_SECRET", "JWT_EXPIRATION", "CORS_ORIGIN", "MAX_FILE_SIZE", "LOG_LEVEL",
        "LIMIT_REQUESTS", "LIMIT_BYTES", "LIMIT_STREAMS", "LIMIT_OPEN",
        "LIMIT_TOKEN_REQUESTS", "LIMIT_TOKEN_BYTES", "LIMIT_TOKEN_STREAMS", "LIMIT_TOKEN_OPEN",
        "QUOTA_BYTES", "QUOTAS",
        "MONGODB_URI", "S3_BUCKET", "S3_ENDPOINT", "S3_REGION", "S3_FORCE_PATH_STYLE", "S3_ACCESS_KEY", "S3_SECRET_KEY",
        "S3_PUBLIC_URL",
    )
)  # fmt: skip
"""All environment variables of a server."""


@dataclass(frozen=True)
class Limits:
    """The most that one user, or one token, may take of one server process; 0 is no limit."""

    requests_per_s: int = 500
    bytes_per_s: int = 200 << 20
    streams: int = 200
    open: int = 500


@dataclass(frozen=True)
class ServerSettings:
    """Checked settings of one server process; `repr` shows no secret."""

    data: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    dev: bool = False
    jwt_secret: str | None = field(default=None, repr=False)
    jwt_expiration_s: int = 30 * 86_400
    cors_origins: tuple[str, ...] = ()
    max_file_size: int = 5 << 30
    log_level: str = "info"
    mongodb_uri: str | None = field(default=None, repr=False)
    s3: S3Settings | None = None
    user_limits: Limits = Limits()
    token_limits: Limits = Limits()
    quota_bytes: int = 0
    """The most that a namespace may keep, in bytes; 0 is no limit."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """The same for single namespaces, by name, in place of `quota_bytes`."""

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach the address to listen on."""
        return is_loopback_host(self.host)

    @property
    def accepts_development_logins(self) -> bool:
        """True if development logins are accepted: with `dev`, on loopback."""
        return self.dev and self.is_loopback


def server_settings(
    *,
    data: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    dev: bool = False,
    env: Mapping[str, str] | None = None,
) -> ServerSettings:
    """Return the settings from options and environment; options win. Raises `InvalidValue` that names the wrong one."""
    environment = os.environ if env is None else env
    user_limits = limits(environment, "LIMIT", Limits())
    settings = ServerSettings(
        data=Path(os.path.abspath(data or environment.get(DATA_VARIABLE) or default_data(environment))),  # noqa: PTH100
        host=host or "127.0.0.1",
        port=_port(environment) if port is None else port,
        dev=dev,
        jwt_secret=_secret(environment),
        jwt_expiration_s=duration_s(environment.get("JWT_EXPIRATION") or "30d", "JWT_EXPIRATION"),
        cors_origins=_origins(environment.get("CORS_ORIGIN", "")),
        max_file_size=size_bytes(environment.get("MAX_FILE_SIZE") or "5GB", "MAX_FILE_SIZE"),
        log_level=_level(environment.get("LOG_LEVEL") or "info"),
        mongodb_uri=_mongodb_uri(environment),
        s3=s3_settings(environment),
        user_limits=user_limits,
        token_limits=limits(environment, "LIMIT_TOKEN", user_limits),
        quota_bytes=_bytes_or_none(environment, "QUOTA_BYTES", 0),
        quotas=_quotas(environment.get("QUOTAS", "")),
    )
    check_data(settings.data)
    if dev and not settings.is_loopback:
        hint = "leave --dev out, or listen on 127.0.0.1: everybody knows the development secret"
        raise InvalidValue(f"--dev and --host {settings.host} do not go together", hint=hint)
    return settings


def s3_settings(environment: Mapping[str, str]) -> S3Settings | None:
    """Return where objects are from the environment; None without `S3_BUCKET`. Raises `InvalidValue`.

    No message shows a key.
    """
    bucket = environment.get("S3_BUCKET")
    if not bucket:
        for name in _S3_VARIABLES:
            if environment.get(name):
                hint = f"set S3_BUCKET to the bucket for files, or unset {name}: files are in --data then"
                raise InvalidValue(f"{name} is set, and S3_BUCKET is not", hint=hint)
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        raise InvalidValue(f"S3_BUCKET is {bucket[:80]!a}", hint="name a bucket: 3 to 63 letters, digits, dots, dashes")
    access, secret = environment.get("S3_ACCESS_KEY") or None, environment.get("S3_SECRET_KEY") or None
    if (access is None) != (secret is None):
        given, missing = ("S3_SECRET_KEY", "S3_ACCESS_KEY") if access is None else ("S3_ACCESS_KEY", "S3_SECRET_KEY")
        hint = "set both, or neither: the usual AWS variables, profiles and roles count then"
        raise InvalidValue(f"{given} is set, and {missing} is not", hint=hint)
    endpoint = _url(environment, "S3_ENDPOINT")
    return S3Settings(
        bucket=bucket,
        endpoint=endpoint,
        region=_region(environment),
        # Few services besides AWS have a host name for each bucket.
        path_style=_yes_or_no(environment, "S3_FORCE_PATH_STYLE", default=endpoint is not None),
        access_key=access,
        secret_key=secret,
        public_url=_url(environment, "S3_PUBLIC_URL"),
    )


def check_data(data: Path) -> Path:
    """Return the data folder. Raises `InvalidValue` if a file is in its place."""
    for place in (data, *data.parents):
        if place.exists() and not place.is_dir():
            problem = f"--data {data} cannot be a folder: {place} is a file"
            raise InvalidValue(problem, hint="name a folder; it is created if it does not exist")
    return data


def default_data(env: Mapping[str, str]) -> Path:
    """Return the default data folder: the same one wherever the server is started."""
    base = env.get("XDG_DATA_HOME", "")
    # The base directory specification says to ignore a relative one.
    if not Path(base).is_absolute():
        base = str(Path(env.get("HOME") or Path.home(), ".local", "share"))
    return Path(base, "ml-dash", "server")


def running_path() -> Path:
    """Return the path of the file in which this user's newest server records its process, data folder and URL."""
    return state_folder() / "server.json"


def running_elsewhere(data: Path) -> tuple[str, str] | None:
    """Return (URL, data folder) of this user's running server, if its folder is not `data`; else None."""
    try:
        note = json.loads(running_path().read_bytes())
        os.kill(int(note["pid"]), 0)
        url, other = str(note["url"]), str(note["data"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (url, other) if os.path.realpath(other) != os.path.realpath(data) else None


def check_someone_may_enter(settings: ServerSettings, has_tokens: bool) -> None:
    """Raise `InvalidValue` if a server beyond loopback would have neither a secret nor a token."""
    if not settings.is_loopback and settings.jwt_secret is None and not has_tokens:
        problem = f"beyond loopback ({settings.host}) a server needs a token or a secret, and this one has neither"
        hint = (
            f"run: ml-dash server token create USER --data {settings.data} - or set JWT_SECRET to at least "
            f"{SECRET_BYTES} random bytes, such as: openssl rand -hex 32"
        )
        raise InvalidValue(problem, hint=hint)


def is_loopback_host(host: str) -> bool:
    """True if a host is a loopback address or `localhost`. No other name is trusted."""
    bare = host.strip("[]").partition("%")[0].lower().rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def duration_s(text: str, label: str) -> int:
    """Return the seconds that `90`, `90s`, `15m`, `12h`, `30d` or `4w` mean. Raises `InvalidValue`."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*([a-z]*)\s*", text)
    if match is None or match[2] not in _UNITS_S or int(match[1]) == 0:
        raise InvalidValue(f"{label} is {text[:40]!a}", hint="write it like 30d, 12h or 90min")
    return int(match[1]) * _UNITS_S[match[2]]


def size_bytes(text: str, label: str) -> int:
    """Return the bytes that `5GB`, `500 MB` or `1048576` mean; a KB has 1,024. Raises `InvalidValue`."""
    match = re.fullmatch(r"\s*(\d{1,15})\s*([A-Za-z]*)\s*", text)
    unit = match[2].upper().replace("IB", "B") if match else "?"
    if match is None or unit not in _UNITS_BYTES or int(match[1]) == 0:
        raise InvalidValue(f"{label} is {text[:40]!a}", hint="write it like 5GB or 500MB")
    return int(match[1]) * _UNITS_BYTES[unit]


def limits(environment: Mapping[str, str], prefix: str, default: Limits) -> Limits:
    """Return the limits from the variables that begin with `prefix`. Raises `InvalidValue` that names the wrong one."""
    return Limits(
        requests_per_s=_number(environment, f"{prefix}_REQUESTS", default.requests_per_s),
        bytes_per_s=_bytes_or_none(environment, f"{prefix}_BYTES", default.bytes_per_s),
        streams=_number(environment, f"{prefix}_STREAMS", default.streams),
        open=_number(environment, f"{prefix}_OPEN", default.open),
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidValue(f"{name} is {text[:40]!a}", hint="set it to a whole number; 0 is no limit")
    return int(text)


def _bytes_or_none(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if text == "0":
        return 0
    return size_bytes(text, name) if text else default


def _quotas(text: str) -> dict[str, int]:
    """Return the quotas of single namespaces, in bytes. Raises `InvalidValue` that names the wrong one."""
    quotas: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, given, size = (piece.strip() for piece in part.rpartition("="))
        if not given or not name or name in quotas:
            hint = "write each namespace once, with its size: alice=1TB,bob=200GB; 0 is no limit"
            raise InvalidValue(f"QUOTAS has {part[:80]!a}", hint=hint)
        quotas[name] = 0 if size == "0" else size_bytes(size, f"QUOTAS, for {name[:40]!a},")
    return quotas


def _port(environment: Mapping[str, str]) -> int:
    text = environment.get("PORT") or str(DEFAULT_PORT)
    if not text.isdecimal() or not text.isascii() or int(text) > 65_535:
        raise InvalidValue(f"PORT is {text[:40]!a}", hint="set it to a number from 0 to 65535")
    return int(text)


def _secret(environment: Mapping[str, str]) -> str | None:
    """Return `JWT_SECRET`. Raises `InvalidValue` for a weak one; no message shows any of it."""
    secret = environment.get("JWT_SECRET")
    if not secret:
        return None
    hint = "set it to random text, such as the output of: openssl rand -hex 32"
    if secret == DEVELOPMENT_SECRET:
        raise InvalidValue("JWT_SECRET is the development secret, which everybody knows", hint=hint)
    if len(secret.encode(errors="surrogateescape")) < SECRET_BYTES:
        raise InvalidValue(f"JWT_SECRET has less than {SECRET_BYTES} bytes", hint=hint)
    return secret


def _mongodb_uri(environment: Mapping[str, str]) -> str | None:
    """Return `MONGODB_URI`. Raises `InvalidValue`, without showing it: it may hold a password."""
    uri = environment.get("MONGODB_URI")
    if not uri:
        return None
    if not re.match(r"mongodb(\+srv)?://[^/?#\s]", uri):
        raise InvalidValue(
            "MONGODB_URI is not the address of a MongoDB server",
            hint="write it like mongodb://user:password@host:27017/ml_dash",
        )
    return uri


def _region(environment: Mapping[str, str]) -> str:
    region = environment.get("S3_REGION") or "us-east-1"
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", region):
        raise InvalidValue(f"S3_REGION is {region[:40]!a}", hint="write it like us-east-1")
    return region


def _url(environment: Mapping[str, str], name: str) -> str | None:
    """Return the URL of a service: only scheme, host and port. Raises `InvalidValue`, without showing what is wrong."""
    text = (environment.get(name) or "").rstrip("/")
    if not text:
        return None
    # No user and password: they would be shown wherever the URL is.
    if not re.fullmatch(r"https?://[A-Za-z0-9._~\[\]:-]+", text):
        hint = "write it like https://s3.example.org or http://127.0.0.1:9000, without a user, a path or a bucket"
        raise InvalidValue(f"{name} is not the address of a service", hint=hint)
    return text


def _yes_or_no(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = (environment.get(name) or "").strip().lower()
    if text and text not in (*_YES, *_NO):
        raise InvalidValue(f"{name} is {text[:40]!a}", hint="set it to true or false")
    return text in _YES if text else default


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^\s/?#@,]+", origin):
            hint = "write origins like https://dash.example.org, with commas between"
            raise InvalidValue(f"CORS_ORIGIN has {origin[:80]!a}", hint=hint)
    return origins


def _level(text: str) -> str:
    level = {"warn": "warning"}.get(text.strip().lower(), text.strip().lower())
    if level not in LOG_LEVELS:
        raise InvalidValue(f"LOG_LEVEL is {text[:40]!a}", hint=f"use one of {', '.join(LOG_LEVELS)}")
    return level
