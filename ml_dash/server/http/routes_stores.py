"""Routes about who asks, and what the stores keep."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ...core.version import __version__
from .calls import READ, Call, Route, answer, encoded


async def me(call: Call) -> Response:
    """Who asks, what they may do here, and what is shown: a team's server, or folders of one machine."""
    who = call.who
    assert who is not None
    own = not who.read_only and call.namespace == who.user
    return answer(
        {
            "user": who.user,
            "namespace": call.namespace,
            "mode": "local" if call.services.core is None else "server",
            "readOnly": not own,
            "can": {"edit": own, "remove": own, "archive": own},
            "version": __version__,
            "stores": list(call.services.stores),
        }
    )


async def storage(call: Call) -> Response:
    """What is kept: bytes of each project, what could be freed, and what waits or is set aside."""
    return encoded(await call.read(call.source.storage))


READING: Final = [
    Route("GET", "/me", me, READ),
    Route("GET", "/storage", storage, READ, page=True),
]
