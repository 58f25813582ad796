"""How much of bodies is held while they come in: of all callers together, and of each."""

import collections
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from distkv_jax.errors import QueueFull, QuotaExceeded
from serve.http.body import read_body
from serve.keys import Caller

LARGEST_AT_ONCE = 16
"""Bodies of the largest size that all callers together may be sending."""
LARGEST_OF_ONE = 8
"""The same, of one caller."""


class Intake:
    """Reads bodies, and counts what it holds of those that are not yet understood.

    The event loop owns it.

    Invariant: callers of whom nothing is held have no entry.
    """

    def __init__(self, max_bytes: int) -> None:
        """Hold nothing.

        Args:
            max_bytes: Of one body.
        """
        self._max_bytes = max_bytes
        self._held: collections.Counter[str] = collections.Counter()

    @contextlib.asynccontextmanager
    async def body_of(self, request: Request, caller: Caller) -> AsyncIterator[bytes]:
        """Read a body, which counts until the `with` is left.

        Raises:
            HttpError: As `read_body` does.
            ClientGone: As `read_body` does.
            QueueFull: There is no room for more of it.
            QuotaExceeded: The caller has too much of the room.
        """
        mine = 0

        def hold(num_bytes: int) -> None:
            nonlocal mine
            self._check(caller, num_bytes)
            mine += num_bytes
            self._held[caller.name] += num_bytes

        try:
            yield await read_body(request, self._max_bytes, hold)
        finally:
            self._held[caller.name] -= mine
            if not self._held[caller.name]:
                del self._held[caller.name]

    def _check(self, caller: Caller, num_bytes: int) -> None:
        held, limit = self._held.total(), LARGEST_AT_ONCE * self._max_bytes
        if held + num_bytes > limit:
            raise QueueFull(f"{held} bytes of bodies are being read, limit {limit}")
        held, limit = self._held[caller.name], LARGEST_OF_ONE * self._max_bytes
        if caller.name and held + num_bytes > limit:
            raise QuotaExceeded(f"{held} bytes of bodies of yours are being read, limit {limit}")
