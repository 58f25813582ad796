"""Everybody who watches sees the same pictures: the engine is read once for all of them."""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple, TypeVar

from distkv_jax.engine.engine import Engine
from distkv_jax.errors import EngineStopped, QueueFull, Unavailable
from serve.dispatch import Dispatcher
from serve.errors import FieldError
from serve.live.recent import Recent
from serve.live.snapshot import (
    Gauges,
    Point,
    Snapshot,
    read_engine,
    read_gauges,
    snapshot_of,
)

T = TypeVar("T")

MIN_INTERVAL_S, MAX_INTERVAL_S, DEFAULT_INTERVAL_S = 0.1, 60.0, 1.0
FRESH_S = 0.05
"""Age up to which a picture serves another watcher; half of the shortest interval."""
MAX_WATCHERS = 64
HISTORY_POINTS = 300
HISTORY_INTERVAL_S = 1.0
STOPPED = "the server was stopped"


class View(NamedTuple):
    """What a watcher is told.

    Attributes:
        snapshot: The server now.
        history: Points of the curves that the watcher has not been told yet, oldest first; at
            first all that are kept.
    """

    snapshot: Snapshot
    history: tuple[Point, ...]


class Watch:
    """Takes pictures while somebody watches, and keeps a short history of numbers always.

    The event loop owns it. Watchers with the same interval wake at the same times, multiples of
    it, so one picture serves all; without a watcher none is taken. The history costs the engine one
    look at a few counters each second, and has the last five minutes when somebody comes.
    """

    def __init__(self, dispatcher: Dispatcher, recent: Recent, *, model: str) -> None:
        """Prepare.

        Args:
            dispatcher: Whose engine is shown.
            recent: One of its observers.
            model: As the server calls it.
        """
        self._dispatcher = dispatcher
        self._recent = recent
        self._model = model
        self._history: collections.deque[Point] = collections.deque(maxlen=HISTORY_POINTS)
        self._num_points = 0
        self._num_watchers = 0
        self._taking: asyncio.Task[Snapshot] | None = None
        self._taken: tuple[float, Snapshot] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_over = asyncio.Event()

    def start(self) -> None:
        """Begin the history."""
        self._keeper = asyncio.create_task(self._keep_history())

    def stop(self) -> None:
        """End the history, and every watcher."""
        self._is_over.set()
        if self._keeper is not None:
            self._keeper.cancel()

    async def views(self, interval_s: float) -> AsyncGenerator[View, None]:
        """Give a view at once and after every interval; it is skipped while the last is unread.

        Raises:
            FieldError: The interval is too short or too long.
            QueueFull: Too many watch.
            Unavailable: The server is stopped.
        """
        if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
            raise FieldError(
                f"interval_s={interval_s:g} must be within {MIN_INTERVAL_S}..{MAX_INTERVAL_S:g}",
                "interval_s",
            )
        if self._num_watchers >= MAX_WATCHERS:
            raise QueueFull(f"{self._num_watchers} are watching, limit {MAX_WATCHERS}")
        self._num_watchers += 1
        try:
            num_told, last = 0, None
            while True:
                snapshot = await self._picture()
                # The first may have been taken for somebody else, just before a multiple.
                if snapshot is not last:
                    num_new = min(self._num_points - num_told, len(self._history))
                    num_told, last = self._num_points, snapshot
                    yield View(snapshot, tuple(self._history)[len(self._history) - num_new :])
                await self._sleep_until_multiple(interval_s)
        finally:
            self._num_watchers -= 1

    async def _sleep_until_multiple(self, interval_s: float) -> None:
        now = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s - now % interval_s):
                await self._is_over.wait()
        if self._is_over.is_set():
            raise Unavailable(STOPPED)

    async def _picture(self) -> Snapshot:
        """Take a picture, or give the one that is being taken, or that was taken just now."""
        if self._taken is not None and time.monotonic() - self._taken[0] < FRESH_S:
            return self._taken[1]
        if self._taking is None:
            self._taking = asyncio.create_task(self._take())
            self._taking.add_done_callback(self._forget_taking)
        # Whoever leaves meanwhile leaves the others theirs.
        return await asyncio.shield(self._taking)

    def _forget_taking(self, task: asyncio.Task[Snapshot]) -> None:
        self._taking = None
        if not task.cancelled():
            task.exception()  # its watchers hear of it, if there are any left

    async def _take(self) -> Snapshot:
        before = self._recent.under_way()
        reading = await self._read(read_engine)
        self._dispatcher.catch_up()
        # Those that came or ended meanwhile may hold blocks in the reading.
        requests = before | self._recent.under_way()
        snapshot = snapshot_of(
            reading,
            sorted(requests.values()),
            model=self._model,
            block_size=self._dispatcher.llm.config.block_size,
            is_draining=self._dispatcher.is_draining,
            now=self._history[-1] if self._history else self._point(reading.gauges, None, 1.0),
        )
        self._taken = (time.monotonic(), snapshot)
        return snapshot

    async def _keep_history(self) -> None:
        with contextlib.suppress(EngineStopped):
            before, began = await self._read(read_gauges), time.monotonic()
            while True:
                await asyncio.sleep(HISTORY_INTERVAL_S)
                gauges, now = await self._read(read_gauges), time.monotonic()
                self._dispatcher.catch_up()
                self._history.append(self._point(gauges, before, now - began))
                self._num_points += 1
                self._recent.rotate()
                before, began = gauges, now

    def _point(self, gauges: Gauges, before: Gauges | None, seconds: float) -> Point:
        new, old = gauges.totals, (gauges if before is None else before).totals
        return Point(
            time=time.time(),
            prompt_tokens_per_s=(new.prompt_tokens - old.prompt_tokens) / seconds,
            generated_tokens_per_s=(new.generated_tokens - old.generated_tokens) / seconds,
            num_running=gauges.num_running,
            num_waiting=gauges.num_waiting,
            used=gauges.used,
            first_token=self._recent.first_tokens.latency(),
            gap=self._recent.gaps.latency(),
        )

    async def _read(self, read: Callable[[Engine], T]) -> T:
        """Read the engine between two of its steps.

        Raises:
            EngineStopped: It answers no more.
            Unavailable: The server is stopped; its engine may hang.
        """
        answer = asyncio.wrap_future(self._dispatcher.llm.thread.call_soon(read))
        over = asyncio.ensure_future(self._is_over.wait())
        try:
            await asyncio.wait((answer, over), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Unavailable(STOPPED)
            return await answer
        finally:
            over.cancel()
            answer.cancel()
