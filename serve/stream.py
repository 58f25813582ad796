"""One request on its way from the engine to its RPC: what it gave and nobody has taken yet."""

import asyncio
import contextlib

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.errors import (
    DeadlineExceeded,
    DistKVError,
    RequestCancelled,
    RequestLost,
    SlowReader,
    Unavailable,
)
from serve.observe.record import Record


class Stream:
    """Keeps a request's updates until they are taken, all at once.

    So a slow reader gets few and large pieces, and never more than `max_unread` tokens are kept
    for it. The event loop owns it.

    Attributes:
        request: What was asked; its name is the engine's.
        record: What happened to it so far.
        has_ended: Whether the engine is done with it.
    """

    def __init__(self, request: Request, record: Record, *, max_unread: int | None) -> None:
        """Begin with nothing.

        Args:
            request: What was asked.
            record: Kept up to date by whoever calls `add`.
            max_unread: Tokens kept at most; None keeps all, and wakes the reader only at the end.
        """
        self.request = request
        self.record = record
        self.has_ended = False
        self._max_unread = max_unread
        self._num_unread = 0
        self._num_open = request.params.n
        self._updates: list[Update] = []
        self._error: DistKVError | None = None
        self._news = asyncio.Event()
        self._end = asyncio.Event()

    def add(self, update: Update) -> None:
        """Take in what a step gave; after an error nothing more is kept."""
        if update.finish_reason is not None:
            self._num_open -= 1
            self.has_ended = not self._num_open
            if self.has_ended:
                self._end.set()
        if self._error is not None:
            return
        self._num_unread += len(update.token_ids)
        if (error := error_of(update, has_begun=self.record.num_tokens > 0)) is not None:
            self.fail(error)
            return
        self._updates.append(update)
        if self._max_unread is not None and self._num_unread > self._max_unread:
            self.fail(
                SlowReader(f"{self._num_unread} tokens were not read, limit {self._max_unread}")
            )
        elif self._max_unread is not None or self.has_ended:
            self._news.set()

    def fail(self, error: DistKVError) -> None:
        """End it with an error, the first of which counts; what was not read is dropped."""
        if self._error is None:
            self._error = error
            self._updates.clear()
        self._news.set()
        self._end.set()

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error."""
        return self._error is not None

    async def take(self, *, not_before: float = 0.0) -> list[Update]:
        """Wait for updates and take them all.

        Args:
            not_before: Time of the event loop until which more are waited for, but at the end.

        Raises:
            DistKVError: It ended before its time.
        """
        await self._news.wait()
        if not_before > asyncio.get_running_loop().time() and not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(not_before):
                    await self._end.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        taken, self._updates, self._num_unread = self._updates, [], 0
        return taken


def error_of(update: Update, *, has_begun: bool) -> DistKVError | None:
    """Tell what went wrong by a sample's finish reason; None for an end as it should be."""
    match update.finish_reason:
        case None | "stop" | "length":
            return None
        case "cancelled":
            return RequestCancelled("the request was cancelled")
        case "deadline":
            return DeadlineExceeded("the deadline passed before the request ended")
        case _:
            text = update.error or "the request failed"
            return RequestLost(text) if has_begun else Unavailable(text)
