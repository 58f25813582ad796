"""One request on its way from the engine to its RPC: what it gave and nobody has taken yet."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, TypeVar

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

T = TypeVar("T")

logger = logging.getLogger(__name__)

LAST_READ_S = 30.0
"""A client has so long to take what is left when its request has ended."""
HISTORY_PIECE = 1024
"""Updates of a request's history that are taken at once."""
OVERDUE = "the deadline passed before the request ended"


class Reach(NamedTuple):
    """How far a sample has come.

    Attributes:
        num_tokens: It has given.
        has_ended: Whether it will give no more.
    """

    num_tokens: int = 0
    has_ended: bool = False


class Stream:
    """Keeps a request's updates until they are taken, all at once.

    So a slow reader gets few and large pieces, and never more than `max_unread` tokens are kept
    for it. Whatever its RPC waits for meanwhile, be it a tokenizer, the engine or a client that
    does not read, ends as soon as the request fails. The event loop owns it.

    A relay keeps nothing for itself: all it hears goes to those that follow it, who may come and
    leave while the request runs.

    Attributes:
        name: The engine's name of the request.
        record: What happened to it so far.
        is_relay: Whether it is one.
        followers: Streams that hear what it hears.
        has_ended: Whether the engine is done with it.
    """

    def __init__(
        self, name: str, record: Record, *, max_unread: int | None, is_relay: bool = False
    ) -> None:
        """Begin with nothing.

        Args:
            name: The engine's name of the request.
            record: Kept up to date by whoever calls `add`.
            max_unread: Tokens kept at most; None keeps all, and wakes the reader only at the end.
            is_relay: Whether it keeps nothing for itself.
        """
        self.name = name
        self.record = record
        self.is_relay = is_relay
        self.followers: list[Stream] = []
        self.has_ended = False
        self._request: Request | None = None
        self._max_unread = max_unread
        self._num_unread = 0
        assert record.params is not None, name
        self._reach = [Reach()] * record.params.n
        self._history: list[list[Update]] = []
        self._updates: list[Update] = []
        self._error: DistKVError | None = None
        self._patience: asyncio.Timeout | None = None
        self._was_taken = False
        self._news = asyncio.Event()

    @property
    def request(self) -> Request:
        """What was asked, once it is tokenised."""
        assert self._request is not None, self.name
        return self._request

    @property
    def has_begun(self) -> bool:
        """Whether the engine was given the request."""
        return self._request is not None

    @property
    def is_eager(self) -> bool:
        """Whether somebody reads along, and does not only wait for the end."""
        return self._max_unread is not None or any(one.is_eager for one in self.followers)

    @property
    def is_done(self) -> bool:
        """Whether all there will ever be was taken."""
        return self.has_ended and not self._history and not self._updates

    @property
    def reach(self) -> tuple[Reach, ...]:
        """How far each sample has come."""
        return tuple(self._reach)

    def begin(self, request: Request) -> None:
        """Take updates of this request from now on."""
        self._request = request
        self._reach = [Reach(len(tokens), has_ended) for tokens, has_ended in request.known]

    def follow(self, relay: "Stream") -> None:
        """Hear what a relay hears from now on."""
        self._request = relay._request
        self._reach = list(relay._reach)
        relay.followers.append(self)

    def precede(self, history: list[Update]) -> None:
        """Give updates from before it began to follow, before all others and in pieces."""
        starts = range(0, len(history), HISTORY_PIECE)
        self._history = [history[at : at + HISTORY_PIECE] for at in reversed(starts)]
        if self._history:
            self._news.set()

    def recall(self, request: Request, reach: Sequence[Reach], history: list[Update]) -> None:
        """Give all of a request that ended before."""
        self._request = request
        self._reach = list(reach)
        self.has_ended = True
        self.precede(history)
        self._news.set()

    def is_of(self, request: Request) -> bool:
        """Whether the request is this stream's: another one may have had its name before."""
        return self._request is request

    def add(self, update: Update) -> None:
        """Take in what a step gave; after an error nothing more is kept.

        Wakes the reader for the first token, for the end and for an error; else `wake` does.
        """
        reach, has_ended = self._reach[update.index], update.finish_reason is not None
        self._reach[update.index] = Reach(
            reach.num_tokens + len(update.token_ids), reach.has_ended or has_ended
        )
        self.has_ended = self.has_ended or (has_ended and all(one.has_ended for one in self._reach))
        if self._error is not None:
            return
        if self.has_ended and self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + LAST_READ_S)
        self._num_unread += len(update.token_ids)
        if (error := error_of(update, self.record)) is not None:
            self.fail(error)
            return
        for follower in self.followers:
            follower.add(update)
        if self.is_relay:
            if self.has_ended:
                self._news.set()
            return
        self._updates.append(update)
        if self._max_unread is not None and self._num_unread > self._max_unread:
            self.fail(
                SlowReader(f"{self._num_unread} tokens were not read, limit {self._max_unread}")
            )
        elif self.has_ended or (self._max_unread is not None and not self._was_taken):
            self._news.set()

    def wake(self) -> None:
        """Wake the reader if there is something to read."""
        for follower in self.followers:
            follower.wake()
        if self._updates:
            self._news.set()

    def fail(self, error: DistKVError) -> None:
        """End it with an error, the first of which counts; what was not read is dropped."""
        if self._error is None:
            self._error = error
            self._history.clear()
            self._updates.clear()
            for follower in self.followers:
                follower.fail(error)
            if self._patience is not None and not self._patience.expired():
                self._patience.reschedule(0.0)
        self._news.set()

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error."""
        return self._error is not None

    async def prepare(self, work: Awaitable[T], deadline: float | None) -> T:
        """Wait for what must be done before the engine has the request.

        Args:
            work: What to wait for; cancelled when the request ends.
            deadline: `time.monotonic()`, the clock of event loops, or None.

        Raises:
            DistKVError: The request ended meanwhile.
            DeadlineExceeded: Its deadline passed.
        """
        return await self._race(work, deadline, DeadlineExceeded(OVERDUE))

    async def write(self, work: Awaitable[None]) -> None:
        """Wait until the client's connection has taken a piece.

        Raises:
            DistKVError: The request ended meanwhile with an error.
            SlowReader: It ended well, and what was left was not taken in time.
        """
        until = asyncio.get_running_loop().time() + LAST_READ_S if self.has_ended else None
        error = SlowReader(f"the end was not read within {LAST_READ_S:g} s")
        await self._race(work, until, error)

    async def _race(self, work: Awaitable[T], until: float | None, late: DistKVError) -> T:
        """Wait for something until a time of the loop, or until `fail`."""
        patience = asyncio.timeout_at(until if self._error is None else 0.0)
        try:
            async with patience:
                self._patience = patience
                return await work
        except TimeoutError:
            if not patience.expired():
                raise
            self._error = self._error or late
            raise self._error from None
        finally:
            self._patience = None

    async def take(self) -> list[Update]:
        """Wait for updates and take them all, of a history a piece.

        Raises:
            DistKVError: It ended before its time.
        """
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        self._was_taken = True
        if self._history:
            taken = self._history.pop()
            if self._history or self._updates:
                self._news.set()
            return taken
        taken, self._updates, self._num_unread = self._updates, [], 0
        return taken


def error_of(update: Update, record: Record) -> DistKVError | None:
    """Tell what went wrong by a sample's finish reason; None for an end as it should be.

    What the engine says of its own trouble is for the log: it may name paths and addresses.
    """
    match update.finish_reason:
        case None | "stop" | "length":
            return None
        case "cancelled":
            return RequestCancelled("the request was cancelled")
        case "deadline":
            return DeadlineExceeded(OVERDUE)
        case _:
            logger.error("request %r failed: %s", update.request.request_id, update.error)
            text = f"request {record.request_id!r} failed, the server's log says why"
            return RequestLost(text) if record.num_tokens else Unavailable(text)
