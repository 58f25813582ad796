"""From the engine's steps to streams: one hand-over a step, and readers woken in rounds."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Container, Mapping

from distkv_jax.engine.outputs import Update
from serve.pace import Pace
from serve.stream import Stream


class Delivery:
    """Brings updates to the streams they belong to.

    The event loop owns it; only `sink` runs on other threads, and does nothing there but hand over.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        waiting: Container[str],
        *,
        stream_interval_s: float,
        hear: Callable[[Stream, Update, float], None],
    ) -> None:
        """Begin with nothing on its way; needs a running event loop.

        Args:
            streams: Those that are open, by the engine's names of their requests.
            waiting: Names of requests without a first token, for which the loop is woken.
            stream_interval_s: Seconds between two pieces of a stream at least.
            hear: Takes an update, its stream, and `time.monotonic()` at which it came.
        """
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._waiting = waiting
        self._hear = hear
        # Those that somebody reads along; the others wait for their end.
        self._eager: set[str] = set()
        self._unread: set[Stream] = set()
        self._pace = Pace(stream_interval_s)
        self._next_round = 0.0
        self._is_woken = False
        self._groups: collections.deque[tuple[float, list[Update]]] = collections.deque()

    def listen(self, stream: Stream) -> None:
        """Wake a stream's readers for pieces, or only for its end, as they are now."""
        if stream.is_eager:
            self._eager.add(stream.name)
        else:
            self._eager.discard(stream.name)

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        self._eager.discard(stream.name)
        self._unread.discard(stream)

    def sink(self, group: list[Update]) -> None:
        """Hand a step's updates over; called on the engine's thread, or on the journal's.

        The loop is woken only if somebody waits for one of them and nobody has woken it: each
        time costs the engine a part of a millisecond.
        """
        now = time.monotonic()
        self._groups.append((now, group))
        is_round = now >= self._next_round
        if not self._is_woken and any(self._is_awaited(update, is_round) for update in group):
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop was closed under the engine
                self._loop.call_soon_threadsafe(self.distribute)

    def _is_awaited(self, update: Update, is_round: bool) -> bool:
        """Whether somebody waits for an update; readers wait for the next round."""
        name = update.request.request_id
        return (
            update.finish_reason is not None
            or name in self._waiting
            or (is_round and name in self._eager)
        )

    def distribute(self) -> None:
        """Bring what came to its streams; called on the loop when it was woken, or to catch up."""
        # Before the groups are taken: what comes meanwhile wakes the loop again.
        self._is_woken = False
        while self._groups:
            self._distribute_group(*self._groups.popleft())
        now = self._loop.time()
        if self._unread and now >= self._next_round:
            for stream in self._unread:
                stream.wake()
            self._unread.clear()
            self._next_round = now + self._pace.next_round()
            # Steps before then wake nobody, and there may be none after.
            self._loop.call_at(self._next_round, self.distribute)

    def _distribute_group(self, now: float, group: list[Update]) -> None:
        for update in group:
            name = update.request.request_id
            stream = self._streams.get(name)
            # Another one of the same name may have come since.
            if stream is None or not stream.is_of(update.request):
                continue
            self._hear(stream, update, now)
            if name in self._eager:
                self._unread.add(stream)
