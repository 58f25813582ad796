"""Server-sent events to a client that may read slowly, stop reading, or go away."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Scope, Send

from serve.http.body import ClientGone

LAST_WORDS_S = 5.0
"""For the error at the end of a stream to be taken by a client that has not read the stream."""
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would collect pieces before it passes them on.
    (b"x-accel-buffering", b"no"),
]


class EventWriter:
    """Writes events, of several tasks too; the first brings the status 200 with it.

    Attributes:
        has_begun: Whether the client has been told that all is well.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        """Write nothing yet; `Protocol` says what is in the state of every request."""
        self._abort = scope["state"]["abort"]
        self._flushed: Callable[[], Awaitable[None]] = scope["state"]["flushed"]
        self._send = send
        self._lock = asyncio.Lock()
        self.has_begun = False
        self._has_ended = False

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Write events in one go; waits while the client has not taken what was written before.

        After the last ones it waits until they are taken too.
        """
        async with self._lock:
            if not self.has_begun:
                self.has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            self._has_ended = is_last
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
            if is_last:
                await self._flushed()

    async def write_last_words(self, data: bytes) -> None:
        """Write the end of a stream that failed.

        Raises:
            ClientGone: The client does not read, perhaps for that it failed, and was cut off.
        """
        if not self._has_ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.write(data, is_last=True)
                    return
        self._abort()
        raise ClientGone


def encoded(event: dict[str, Any]) -> bytes:
    """Write an event."""
    return b"data: " + json_bytes(event) + b"\n\n"


def json_bytes(value: dict[str, Any]) -> bytes:
    """Write JSON; half a surrogate, which no UTF-8 has, becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


async def until_gone(work: Awaitable[None], lost: asyncio.Event) -> None:
    """Do something for a client, and cancel it when its connection is lost.

    Raises:
        ClientGone: It went.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        is_over = working.done()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
    if not is_over:
        raise ClientGone
    working.result()
