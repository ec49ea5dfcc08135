"""Routes for live readers: long replies that tell of changes, of one experiment or of many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from .calls import READ, Call, Route
from .stream import Feed

MOST_FOLLOWED: Final = 1000
"""The most experiments that one stream follows by name; all of a namespace are followed without naming them."""


async def events(call: Call) -> Response:
    """A stream of server-sent events: how many events and deaths the experiment has, each time that changes."""
    hub, name = call.services.hub, call.experiment()
    if call.request.method == "HEAD":
        await call.read(call.source.experiment, name)
        return Response(media_type="text/event-stream")
    text = call.request.headers.get("last-event-id", "")
    known = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    if call.admission is not None:
        call.admission.stream()
    listener = hub.join(call.namespace, name)
    leave = partial(hub.leave, call.namespace, name, listener)
    try:
        # Join before asking, so that no change between the two is missed.
        await call.read(call.source.experiment, name)
        listener.notify((await call.read(call.source.events, [name])).get(name) or None)
    except BaseException:
        leave()
        raise
    return _Stream(hub.stream(name, listener, known), leave)


async def changes(call: Call) -> Response:
    """A stream of server-sent events: which experiments have changed, of some or of the whole namespace."""
    ids = call.experiments(MOST_FOLLOWED)
    if call.request.method == "HEAD":
        return Response(media_type="text/event-stream")
    if call.admission is not None:
        call.admission.stream()
    hub, source = call.services.hub, call.source
    # What a whole namespace has now is what its reader has listed, or will; of single ones the numbers are told.
    known = {} if ids or not call.services.polls else dict(await call.read(source.events))
    feed = Feed(frozenset(ids) if ids else None, known)
    hub.join_feed(call.namespace, feed)
    leave = partial(hub.leave_feed, call.namespace, feed)
    try:
        for experiment, count in (await call.read(source.events, ids) if ids else {}).items():
            feed.notify(experiment, count or None)
    except BaseException:
        leave()
        raise
    return _Stream(hub.feed(feed), leave)


class _Stream(StreamingResponse):
    """The response to a live reader; removes its listener when it ends, however it ends."""

    def __init__(self, stream: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream, headers=headers, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


READING: Final = [
    Route("GET", "/experiments/{experiment}/events", events, READ),
    Route("GET", "/changes", changes, READ),
]
