"""What the judge asks a server over HTTP: pages, bytes and states, with nothing of the library in between."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

DEVELOPMENT_SECRET: Final = b"your-secret-key-change-this-in-production"
PAGE: Final = 1000


def user_id(name: str) -> str:
    """The development login's user id."""
    number = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
    return str(number)[:10]


def jwt(claims: Mapping[str, Any], secret: bytes = DEVELOPMENT_SECRET, **header: Any) -> str:
    """A token signed with HMAC-SHA-256, whatever it claims."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    text = f"{part({'alg': 'HS256', 'typ': 'JWT', **header})}.{part(claims)}"
    mark = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mark).rstrip(b'=').decode()}"


def claims(user: str, *, now: float | None = None, lasts_s: float = 30 * 86_400) -> dict[str, Any]:
    """What a development login says."""
    issued = int(time.time() if now is None else now)
    return {"userId": user_id(user), "userName": user, "iat": issued, "exp": issued + int(lasts_s)}


def login(user: str = "alice") -> str:
    """A development login; signed with `ML_DASH_JWT_SECRET` where that is set."""
    return jwt(claims(user), os.environ.get("ML_DASH_JWT_SECRET", "").encode() or DEVELOPMENT_SECRET)


Address = int | tuple[str, int]
"""A port of this host, or (host, port)."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; empty if the body tells none."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(self.json()["error"]["code"])
        return ""


class Asked(Exception):
    """The server did not answer what was asked; the message has both."""


class Client:
    """One keep-alive connection to a server, as some user."""

    def __init__(
        self, address: Address, *, user: str = "alice", token: str | None = None, timeout_s: float = 20.0
    ) -> None:
        self.host, self.port = ("127.0.0.1", address) if isinstance(address, int) else address
        self.token = login(user) if token is None else token
        self.timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, once; OSError or HTTPException if there is no answer."""
        sent = {"X-ML-Dash-Protocol": "1", **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if params:
            path += "?" + urlencode(params)
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            self._connection.request(method, path, body, sent)
            response = self._connection.getresponse()
            answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return answer

    def json(self, method: str, path: str, value: Any = None, *, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON of a 200 or 201. Raises Asked for anything else."""
        body = None if value is None else json.dumps(value).encode()
        headers = {} if value is None else {"Content-Type": "application/json"}
        answer = self.ask(method, path, body, params=params, headers=headers)
        if answer.status not in (200, 201):
            raise Asked(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer.json()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- replication -------------------------------------------------------------------------------------------------

    def journal(self, journal: str) -> dict[str, Any] | None:
        """What the server has of a journal; None if it never saw it."""
        answer = self.ask("GET", f"/sync/v1/journals/{journal}")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Asked(f"state of journal {journal}: {answer.status} {answer.body[:300]!r}")
        found: dict[str, Any] = answer.json()
        return found

    def post_segment(self, journal: str, file: str, offset: int, data: bytes, **params: Any) -> Answer:
        """Send bytes of a segment."""
        path = f"/sync/v1/journals/{journal}/segments/{file}"
        return self.ask("POST", path, data, params={"offset": offset, **params})

    def put_blob(self, journal: str, name: str, offset: int, size: int, data: bytes, *, body: bool = False) -> Answer:
        """Send bytes of a blob."""
        params = {"offset": offset, "size": size} | ({"kind": "body"} if body else {})
        return self.ask("PUT", f"/sync/v1/journals/{journal}/blobs/{name}", data, params=params)

    def segment(self, segment: str) -> bytes:
        """All bytes that the server has of a segment."""
        parts: list[bytes] = []
        have = 0
        while True:
            answer = self.ask("GET", f"/sync/v1/segments/{segment}", params={"offset": have, "limit": 4 << 20})
            if answer.status != 200:
                raise Asked(f"bytes of segment {segment} from {have}: {answer.status} {answer.body[:300]!r}")
            parts.append(answer.body)
            have += len(answer.body)
            if not answer.body or have >= int(answer.headers.get("x-ml-dash-length", have)):
                return b"".join(parts)

    # -- the REST API ------------------------------------------------------------------------------------------------

    def pages(self, path: str, key: str, *, page: int = PAGE) -> list[Any]:
        """All items of a listing that is read by startIndex and limit."""
        items: list[Any] = []
        while True:
            found = self.json("GET", path, params={"startIndex": len(items), "limit": page})
            items += found[key]
            if not found["hasMore"]:
                return items
            if not found[key]:
                raise Asked(f"{path}: an empty page from {len(items)} on says that there is more")

    def logs(self, experiment: str) -> list[dict[str, Any]]:
        """All log entries."""
        return self.pages(f"/experiments/{experiment}/logs", "logs")

    def metrics(self, experiment: str) -> dict[str, int]:
        """Metric → how many points the listing says."""
        found = self.json("GET", f"/experiments/{experiment}/metrics")["metrics"]
        return {metric["name"]: metric["totalDataPoints"] for metric in found}

    def points(self, experiment: str, metric: str) -> list[dict[str, Any]]:
        """All points of a metric."""
        return self.pages(f"/experiments/{experiment}/metrics/{quote(metric, safe='')}/data", "data")

    def parameters(self, experiment: str) -> dict[str, Any]:
        """The parameters."""
        answer = self.ask("GET", f"/experiments/{experiment}/parameters")
        if answer.status == 404:
            return {}
        if answer.status != 200:
            raise Asked(f"parameters: {answer.status} {answer.body[:300]!r}")
        found: dict[str, Any] = answer.json()["data"]
        return found

    def files(self, experiment: str) -> list[dict[str, Any]]:
        """The records of files that are not deleted."""
        found: list[dict[str, Any]] = self.json("GET", f"/experiments/{experiment}/files")["files"]
        return found

    def download(self, experiment: str, file: str) -> Answer:
        """A file's content."""
        return self.ask("GET", f"/experiments/{experiment}/files/{file}/download")


@contextlib.contextmanager
def client(address: Address, **options: Any) -> Iterator[Client]:
    """A client for a while."""
    with Client(address, **options) as made:
        yield made
