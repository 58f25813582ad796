"""A whole answer to a client that may read slowly, stop reading, or go away."""

from collections.abc import Awaitable, Callable

from starlette.types import Scope, Send

from serve.stream import Stream

PART_BYTES = 65_536
"""Of an answer's end, each has as long as the end of a stream to be taken."""


async def write_answer(body: bytes, stream: Stream, scope: Scope, send: Send) -> None:
    """Write JSON, until the client's machine has all of it.

    So the quota and the drain are not done with it while it lies in this process.

    Args:
        body: What to write.
        stream: Of the request that ended last; its patience is the client's.
        scope: Of the call; its state has `flushed`.
        send: Takes messages of ASGI.

    Raises:
        SlowReader: A part was not taken in time.
    """
    flushed: Callable[[], Awaitable[None]] = scope["state"]["flushed"]
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for begin in range(0, len(body), PART_BYTES):
        part, has_more = body[begin : begin + PART_BYTES], begin + PART_BYTES < len(body)
        message = {"type": "http.response.body", "body": part, "more_body": has_more}
        await stream.write(send(message))
    await stream.write(flushed())
