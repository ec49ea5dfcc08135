"""The dashboard's page and its files as answers: policy, ETag, the compressed form where it is taken.

The policy lets the page run its own scripts and nothing else: no inline script, no `eval`, no other origin.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ...core.protocol import UNKNOWN, Refused
from .assets import Asset, Assets, version_in
from .calls import Call, takes_gzip

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'"
)
PAGE_HEADERS: Final = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_YEAR_S: Final = 365 * 86_400
_ASSETS: Final = Assets()


async def page_of(call: Call, status: int = 200) -> Response:
    """Return the dashboard's page, the same at every path. Raises Refused (404) if it is not installed."""
    response = _sent(call, _there(await call.read(_ASSETS.page)), status)
    response.headers.update(PAGE_HEADERS)
    response.headers["Content-Security-Policy"] = f"{POLICY}; frame-ancestors {' '.join(call.services.frames)}"
    return response


async def asset_of(call: Call, path: str) -> Response:
    """Return a file of the dashboard; 304 where the client has it. Raises Refused (404) if there is none."""
    version, path = version_in(path)
    asset = _there(await call.read(_ASSETS.find, path))
    # A page of before an update may ask for the files of then: what it gets must not be kept under that name.
    return _sent(call, asset, kept=version is not None and await call.read(_ASSETS.is_current, version))


def _there(asset: Asset | None) -> Asset:
    if asset is None:
        raise Refused(404, UNKNOWN, "the dashboard has no such file")
    return asset


def asks_for_page(call: Call) -> bool:
    """True if a browser goes to this path, False if a script or a program asks for what is there."""
    return "text/html" in call.request.headers.get("accept", "")


def _sent(call: Call, asset: Asset, status: int = 200, *, kept: bool = False) -> Response:
    """Return the answer with an asset, compressed where the client takes that; 304 where it has it already.

    What is `kept` is the same for good under its URL.
    """
    headers = call.request.headers
    packed = asset.packed is not None and takes_gzip(headers.get("accept-encoding", ""))
    etag = f'"{asset.digest}{"-gzip" if packed else ""}"'
    # What may change is asked for each time, so that a new version is there at once; the answer is 304 nearly always.
    caching = f"public, max-age={_YEAR_S}, immutable" if kept else "no-cache"
    common = {"Cache-Control": caching, "ETag": etag, "Vary": "Accept-Encoding"}
    known = [one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")]
    if status == 200 and etag in known:
        return Response(None, 304, common)
    common |= {"Content-Type": asset.kind, "Cross-Origin-Resource-Policy": "same-origin"}
    if packed:
        assert asset.packed is not None
        return Response(asset.packed, status, {**common, "Content-Encoding": "gzip"})
    return Response(asset.content, status, common)
