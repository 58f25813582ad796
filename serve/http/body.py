"""A request's body as it comes in: not too large, and not too slowly."""

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from serve.http.failure import HttpError

PIECE_S = 10.0
"""For a body to begin, and for each piece of it to come after the one before."""
BYTES_PER_S = 64 * 1024
"""All of it has a second more for each of so many bytes."""
DISCARDED = 4
"""A body of up to so many limits is read to its end before it is refused: a client that is cut off
while it sends never sees why."""


class ClientGone(Exception):
    """Nobody reads the answer any more."""


async def read_body(request: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Read all of a body.

    Args:
        request: Whose.
        max_bytes: It may have.
        hold: Told the bytes of each piece that is kept; what it raises ends the reading.

    Raises:
        HttpError: It is longer than `max_bytes`, stops, or comes slower than anybody's line.
        ClientGone: The client went away while it sent.
    """
    given = request.headers.get("content-length", "")
    if given.isdecimal() and int(given) > DISCARDED * max_bytes:
        raise too_large(given, max_bytes)
    pieces: list[bytes] = []
    num_bytes = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(PIECE_S) as limit:
            async for piece in request.stream():
                num_bytes += len(piece)
                if num_bytes > DISCARDED * max_bytes:
                    break
                if num_bytes <= max_bytes:
                    hold(len(piece))
                    pieces.append(piece)
                # One sent at once may not idle for the time of a slow one.
                limit.reschedule(PIECE_S + min(loop.time(), began + num_bytes / BYTES_PER_S))
    except TimeoutError:
        raise HttpError(
            408,
            f"{num_bytes} bytes of the body came in the time for them, "
            f"which is {PIECE_S:g} s for each piece, in all no more than 1 s for each "
            f"{BYTES_PER_S} bytes besides",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect as error:
        raise ClientGone from error
    if num_bytes > max_bytes:
        raise too_large(given or f"{num_bytes} or more", max_bytes)
    return b"".join(pieces)


def too_large(given: str, max_bytes: int) -> HttpError:
    """Say how large the body is, and how large it may be."""
    return HttpError(
        413,
        f"the body has {given} bytes, limit {max_bytes}",
        code="request_too_large",
        headers={"connection": "close"},
    )
