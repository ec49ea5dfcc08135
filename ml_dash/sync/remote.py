"""A connection to one server: the calls of the sync protocol and of the REST API over HTTP.

Only JSON that a server of this protocol can have made counts as an answer: a sign-in page of a network answers 200 too.
"""

from __future__ import annotations

import contextlib
import gzip
import json as jsons
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, urlsplit

from ..core.protocol import (
    PREFIX,
    PROTOCOL,
    PROTOCOL_HEADER,
    QUOTA,
    UNKNOWN,
    Appended,
    BlobState,
    DeathNote,
    Digest,
    FoundExperiment,
    JournalState,
    OrderPage,
    blob_path,
    journal_path,
    segment_path,
)
from ..core.version import __version__
from ..disk.durable import BLOCK_BYTES
from ..disk.places import is_loopback
from ..errors import RemoteError, ServerRefused, Unauthorised, Unreachable

if TYPE_CHECKING:
    import requests

Token = Callable[[], str | None] | str | None
Timeout = tuple[float, float]

CONNECT_S: Final = 5.0
# Between two reads of an answer, not for the whole of it.
ANSWER_S: Final = 60.0
_MAX_ANSWER_BYTES: Final = 64 << 20
_COMPRESSED_FROM_BYTES: Final = 1 << 10
_SAMPLE_BYTES: Final = 32 << 10
# Of a message from outside, at most so many characters are shown.
_MAX_SHOWN: Final = 300
_DOT: Final = "/%2E"
# Statuses of HTTP that mean "not now", not "no".
_LATER: Final = frozenset((408, 425, 429))
_LONGEST_PAUSE_S: Final = 3600.0


class Link:
    """One server and one login, over connections that are kept open. For one thread at a time."""

    def __init__(self, url: str, token: Token, *, timeout_s: Timeout | None = None) -> None:
        """`token` is a text or a function that returns one; `timeout_s` is (to connect, between two reads)."""
        self.url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s if timeout_s is not None else (CONNECT_S, ANSWER_S)
        self._session: requests.Session | None = None
        self._store_session: requests.Session | None = None

    def close(self) -> None:
        """Close the connections."""
        for session in (self._session, self._store_session):
            if session is not None:
                session.close()
        self._session = self._store_session = None

    def _open(self) -> requests.Session:
        from requests.adapters import HTTPAdapter

        session = _plain_session(self.url)
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=4, max_retries=0)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.headers["User-Agent"] = f"ml-dash/{__version__}"
        session.headers[PROTOCOL_HEADER] = str(PROTOCOL)
        return session

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        linked: bool = False,
    ) -> requests.Response:
        """Send one request and return its answer, which has a status below 300.

        With `stream` the caller reads and closes it. With `linked` the server may name another address for a content;
        it is asked for there, without the login.

        Raises Unauthorised (no login, 401, 403), Unreachable (try again, later) or ServerRefused (the server says no).
        """
        import requests

        token = self._token() if callable(self._token) else self._token
        if token is None:
            raise Unauthorised(f"there is no login for {self.url}", hint=f"run: ml-dash login {self.url}")
        sent = {"Authorization": f"Bearer {token}", **(headers or {})}
        if json is not None:
            data = jsons.dumps(json, allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        try:
            session = self._session = self._session or self._open()
            # Redirects are not followed: a login is for one server, and a POST must not become a GET.
            response = session.request(
                method, self.url + path, params=params, data=data, headers=sent, stream=True,
                timeout=self._timeout_s, allow_redirects=False,
                auth=_Exactly(self.url + path) if _DOT in path else None,
            )  # fmt: skip
            if linked and response.status_code == 307 and PROTOCOL_HEADER in response.headers:
                return self._linked(response, headers or {})
            if response.status_code >= 300:
                _refuse(self.url, response)
            if PROTOCOL_HEADER not in response.headers:
                raise _strange(self.url, response)
            if not stream:
                _read_whole(self.url, response)
        except requests.exceptions.SSLError as error:
            raise Unreachable(f"{self.url} has no certificate that is trusted here: {_short(error)}") from error
        except (requests.RequestException, OSError) as error:
            if isinstance(error, RemoteError):
                raise
            raise Unreachable(f"{self.url} cannot be reached: {_short(error)}") from error
        except ValueError as error:
            # URL or headers that urllib3 cannot send: it raises ValueErrors of its own.
            raise Unreachable(f"{self.url} cannot be asked: {_short(error)}") from error
        return response

    def _linked(self, response: requests.Response, headers: Mapping[str, str]) -> requests.Response:
        """Return the answer of the object store that the server names. Raises Unreachable.

        The address is a secret for some minutes, so that no message shows more of it than the host.
        """
        import requests

        response.close()
        address = response.headers.get("Location", "")
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unreachable(f"{self.url} names no address for the content")
        store = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if self._store_session is None:
            # A session of its own: nothing of ours goes there, no login, no cookie.
            self._store_session = _plain_session(store)
        try:
            answer = self._store_session.get(
                address, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=self._timeout_s,
                allow_redirects=False,
            )  # fmt: skip
        except (requests.RequestException, OSError, ValueError) as error:
            hint = "the server's owner has set S3_PUBLIC_URL to this address; it must be reachable from here"
            raise Unreachable(f"{store}, where {self.url} has its files, cannot be reached", hint=hint) from error
        if answer.status_code not in (200, 206):
            answer.close()
            failure = Unreachable(f"{store}, where {self.url} has its files, answered {answer.status_code}")
            failure.retry_after_s = _pause(answer)
            raise failure
        return answer

    def ask(self, method: str, path: str, needed: Sequence[str], **how: Any) -> dict[str, Any]:
        """Send one request and return its JSON answer, an object. Raises Unreachable if it lacks a `needed` field."""
        response = self.call(method, path, **how)
        try:
            answer = jsons.loads(response.content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not all(name in answer for name in needed):
            raise _strange(self.url, response)
        return answer


# -- the sync protocol (docs/protocol.md) -----------------------------------------------------------------------------


def journal(link: Link, journal: str) -> JournalState:
    """Return what the server has of a journal. Raises ServerRefused with code `unknown` if that is nothing."""
    needed = ("segments", "blobs", "missing", "removed", "tombstone")
    return cast("JournalState", link.ask("GET", journal_path(journal), needed))


def append_segment(
    link: Link,
    journal: str,
    file: str,
    offset: int,
    data: bytes | memoryview,
    *,
    damaged: Sequence[tuple[int, int]] = (),
    without: Sequence[str] = (),
) -> Appended:
    """Send bytes of a segment from `offset` on; return how many of its bytes are durable on the server then.

    `damaged` are ranges of offsets that hold no whole frame here; `without` names bodies that cannot be sent.
    """
    params = {"offset": str(offset)}
    if damaged:
        params["damaged"] = ",".join(f"{start}-{end}" for start, end in damaged)
    if without:
        params["without"] = ",".join(without)
    body, headers = _packed(data)
    path = segment_path(journal, file)
    answer = link.ask("POST", path, ("length", "events"), params=params, data=body, headers=headers)
    if not _is_size(answer["length"]):
        raise Unreachable(f"{link.url} acknowledged no length; is there a proxy before it?")
    return cast("Appended", answer)


def deaths(link: Link, journal: str, notes: Sequence[DeathNote]) -> int:
    """Report writers that were found dead; return how many of the notes were new to the server."""
    answer = link.ask("POST", f"{journal_path(journal)}/deaths", ("deaths",), json={"deaths": list(notes)})
    return cast("int", answer["deaths"])


def blob_state(link: Link, journal: str, name: str) -> BlobState:
    """Return how many bytes of a blob the server has, and whether it needs more."""
    return cast("BlobState", link.ask("GET", f"{blob_path(journal, name)}/state", ("length", "complete")))


def append_blob(
    link: Link, journal: str, name: str, offset: int, size: int, data: bytes | memoryview, *, body: bool = False
) -> BlobState:
    """Send bytes of a blob of `size` bytes; return how many of them are durable on the server then."""
    params = {"offset": str(offset), "size": str(size), **({"kind": "body"} if body else {})}
    packed, headers = _packed(data)
    path = blob_path(journal, name)
    answer = link.ask("PUT", path, ("length", "complete"), params=params, data=packed, headers=headers)
    if not _is_size(answer["length"]):
        raise Unreachable(f"{link.url} acknowledged no length; is there a proxy before it?")
    return cast("BlobState", answer)


def append_blobs(link: Link, journal: str, items: Sequence[tuple[str, bytes]]) -> set[str]:
    """Send whole contents of small files, (name, bytes); return the names of those that are complete then.

    At most `protocol.MAX_BLOBS` of them. Raises ServerRefused (404) if the server's version takes them one by one.
    """
    import msgspec

    packed, headers = _packed(msgspec.msgpack.encode(list(items)))
    answer = link.ask("POST", f"{journal_path(journal)}/blobs", ("complete",), data=packed, headers=headers)
    return set(cast("list[str]", answer["complete"]))


def digests(link: Link, journal: str, wanted: Mapping[str, int]) -> dict[str, Digest]:
    """Return the SHA-256 of the first `wanted[id]` bytes of each segment; those that the server lacks are left out."""
    answer = link.ask("POST", f"{journal_path(journal)}/digests", ("segments",), json={"segments": dict(wanted)})
    return cast("dict[str, Digest]", answer["segments"])


def find_experiment(link: Link, project: str, name: str) -> FoundExperiment:
    """Return an experiment by its names. Raises ServerRefused with code `unknown` if there is none."""
    params = {"project": project, "name": name}
    return cast("FoundExperiment", link.ask("GET", f"{PREFIX}/experiments", ("experiment", "journals"), params=params))


def order(link: Link, experiment: str, after: int, limit: int) -> OrderPage:
    """Return a page of merge records and deaths behind arrival `after`, in the order of arrival."""
    params = {"after": str(after), "limit": str(limit)}
    path = f"{PREFIX}/experiments/{experiment}/order"
    return cast("OrderPage", link.ask("GET", path, ("records", "next"), params=params))


def segment_bytes(link: Link, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
    """Return (at most `limit` bytes of a segment from `offset` on, its file name, the id of its journal)."""
    params = {"offset": str(offset), "limit": str(limit)}
    response = link.call("GET", f"{PREFIX}/segments/{segment}", params=params)
    try:
        return response.content, response.headers["X-ML-Dash-File"], response.headers["X-ML-Dash-Journal"]
    except KeyError:
        raise _strange(link.url, response) from None


def base(link: Link, experiment: str) -> bytes:
    """Return the state of an experiment, encoded as a base (see `journal.base.decode`)."""
    return link.call("GET", f"{PREFIX}/experiments/{experiment}/base").content


def blob(link: Link, experiment: str, name: str) -> Iterator[bytes]:
    """Yield the content of a blob, in blocks of at most 1 MiB. Raises ServerRefused (404) if it is not complete."""
    response = link.call("GET", f"{PREFIX}/experiments/{experiment}/blobs/{quote(name)}", stream=True)
    return _blocks(link.url, response)


def has_blob(link: Link, experiment: str, name: str, size: int) -> bool:
    """True if the whole of a blob, of `size` bytes, could be fetched. Fetches its first byte to find out."""
    path = f"{PREFIX}/experiments/{experiment}/blobs/{quote(name)}"
    try:
        response = link.call("GET", path, headers={"Range": "bytes=0-0"} if size else {})
    except ServerRefused as refused:
        if refused.status in (404, 416):
            return False
        raise
    if not size:
        return not response.content
    return response.headers.get("Content-Range", "").rpartition("/")[2] == str(size)


def remove(link: Link, experiment: str) -> int:
    """Hide an experiment on the server; return how many writers that silences."""
    return cast("int", link.ask("DELETE", f"{PREFIX}/experiments/{experiment}", ("writers",))["writers"])


def whoami(link: Link) -> dict[str, Any]:
    """Return the owner of the login, and what it allows."""
    return link.ask("GET", "/whoami", ("userName", "readOnly"))


class ServerSource:
    """A server as a `Source` of `pull`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def name(self) -> str:
        return self._link.url

    def find(self, project: str, name: str) -> FoundExperiment | None:
        try:
            return find_experiment(self._link, project, name)
        except ServerRefused as refused:
            if refused.status == 404:
                return None
            raise

    def order(self, experiment: str, after: int, limit: int) -> OrderPage:
        return order(self._link, experiment, after, limit)

    def segment(self, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
        return segment_bytes(self._link, segment, offset, limit)

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        return digests(self._link, journal, wanted)

    def base(self, experiment: str) -> bytes:
        return base(self._link, experiment)

    def blob(self, experiment: str, name: str) -> Iterator[bytes]:
        return blob(self._link, experiment, name)


class ServerHolder:
    """A server as a `Holder` for `gc`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def name(self) -> str:
        return self._link.url

    def removed(self, journal: str) -> set[str]:
        known = _known(self._link, journal)
        return set(known["removed"]) if known is not None else set()

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        return digests(self._link, journal, wanted)

    def complete_blobs(self, journal: str, wanted: dict[str, int]) -> set[str]:
        known = _known(self._link, journal)
        return {name for name, size in wanted.items() if holds(self._link, known, name, size)}

    def let_go(self, journal: str, wanted: dict[str, int]) -> set[str]:
        known = _known(self._link, journal)
        return {name for name in wanted if has_let_go(self._link, known, journal, name)}


def holds(link: Link, known: JournalState | None, name: str, size: int) -> bool:
    """True if the server holds a content, whole and verified. `known` is its state of the journal that sent it."""
    if known is None:
        return False
    listed = known["blobs"].get(name)
    if listed is not None and listed["complete"] and listed["length"] == size:
        return True
    # Bodies are not listed, nor versions that were replaced; the state of a blob only says whether to send it.
    return has_blob(link, known["experiment"], name, size)


def has_let_go(link: Link, known: JournalState | None, journal_id: str, name: str) -> bool:
    """True if the server does not want a content: the file was replaced or deleted on another machine."""
    if known is None:
        return False
    try:
        return blob_state(link, journal_id, name)["complete"]
    except ServerRefused:
        return False


def _known(link: Link, journal_id: str) -> JournalState | None:
    try:
        return journal(link, journal_id)
    except ServerRefused as refused:
        if refused.code == UNKNOWN:
            return None
        raise


# -- requests and answers ---------------------------------------------------------------------------------------------


class _Exactly:
    """An authentication hook that restores a path which requests has normalised: a metric may be called `..`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        _, mark, query = (request.url or "").partition("?")
        request.url = self._url + mark + query
        return request


def _plain_session(url: str) -> requests.Session:
    """Return a session for this server that takes no login from elsewhere."""
    import requests

    session = requests.Session()
    # A login in .netrc must not replace ours; a proxy cannot reach the loopback interface of this machine.
    session.auth = _no_auth
    if is_loopback(url):
        session.trust_env = False
        # That also takes away the user's own certificates, which a proxy with TLS on this machine may need.
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    return session


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _packed(data: bytes | memoryview) -> tuple[bytes | memoryview, dict[str, str]]:
    """Return (body, headers), compressed if that saves at least a tenth."""
    headers = {"Content-Type": "application/octet-stream"}
    if len(data) < _COMPRESSED_FROM_BYTES:
        return bytes(data), headers
    sample = data[:_SAMPLE_BYTES]
    if len(data) > 2 * _SAMPLE_BYTES and len(zlib.compress(sample, 1)) > len(sample) * 0.9:
        # Checkpoints and pictures do not get smaller; finding that out must not cost more than sending them.
        return data, headers
    packed = gzip.compress(data, 1, mtime=0)
    if len(packed) > len(data) * 0.9:
        return data, headers
    return packed, {**headers, "Content-Encoding": "gzip"}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_whole(url: str, response: requests.Response) -> None:
    """Read the answer into memory. Raises Unreachable if it is larger than 64 MiB."""
    parts, have = [], 0
    with contextlib.closing(response):
        for part in response.iter_content(BLOCK_BYTES):
            have += len(part)
            if have > _MAX_ANSWER_BYTES:
                raise Unreachable(f"{url} answers without end")
            parts.append(part)
    response._content = b"".join(parts)


def _refuse(url: str, response: requests.Response) -> None:
    """Raise the error that an answer with a status of 300 or more stands for."""
    status = response.status_code
    _read_whole(url, response)
    error, extra = _error(response)
    if PROTOCOL_HEADER not in response.headers or error is None or status < 400:
        if status in (401, 403) or status < 400 or status in (404, 405, 407, 410):
            # Something stands between, or this is no ml-dash server: what the server would say is not known.
            raise _strange(url, response)
        if status != 413:
            failure = Unreachable(f"{url} answered {status} {response.reason or ''}".rstrip())
            failure.retry_after_s = _pause(response)
            raise failure
        error, extra = {"code": "too_large", "message": "a proxy before the server takes no body of this size"}, {}
    code, message = str(error.get("code", "")), str(error.get("message", ""))[:_MAX_SHOWN]
    if status in (401, 403):
        # The server does not know under which URL it is reached; the hint does.
        said = message.removesuffix("; run: ml-dash login URL")
        raise Unauthorised(f"{url}: {said}", hint=f"run: ml-dash login {url}")
    if status in _LATER or (status >= 500 and code != QUOTA):
        failure = Unreachable(f"{url} cannot take it now ({status} {code}): {message}")
        failure.retry_after_s = _pause(response)
        failure.answered = True
        raise failure
    raise ServerRefused(f"{url} refused ({status} {code}): {message}", status=status, code=code, extra=extra)


def _error(response: requests.Response) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return (`error` of an answer, its other fields); (None, {}) if no ml-dash server has sent it."""
    try:
        body = jsons.loads(response.content)
        error = body.pop("error")
        return (error, body) if isinstance(error, dict) else (None, {})
    except (ValueError, LookupError, AttributeError, TypeError):
        return None, {}


def _pause(response: requests.Response) -> float | None:
    """Return the seconds to wait by `Retry-After`, a number or a date (RFC 9110), at most an hour; None without it."""
    text = response.headers.get("Retry-After")
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), _LONGEST_PAUSE_S)
    import time
    from email.utils import parsedate_to_datetime

    try:
        left = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, left), _LONGEST_PAUSE_S)


def _strange(url: str, response: requests.Response) -> Unreachable:
    kind = response.headers.get("Content-Type", "no type")
    return Unreachable(
        f"{url} did not answer like an ml-dash server (status {response.status_code}, {kind[:60]})",
        hint="check the URL, and whether a proxy or a sign-in page stands before it",
    )


def _short(error: BaseException) -> str:
    """Return the text of an error, without the nested representations that requests adds."""
    reason: Any = error.args[0] if error.args else error
    reason = getattr(reason, "reason", reason)
    return str(reason).partition(": ")[2][:_MAX_SHOWN] if "object at 0x" in str(reason) else str(reason)[:_MAX_SHOWN]


def _blocks(url: str, response: requests.Response) -> Iterator[bytes]:
    import requests

    with contextlib.closing(response):
        try:
            yield from response.iter_content(BLOCK_BYTES)
        except (requests.RequestException, OSError) as error:
            raise Unreachable(f"{url} broke off: {_short(error)}") from error
