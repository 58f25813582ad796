"""Sending at the planned times, without more at once than allowed, and how late it was.

One process and one event loop: what they cannot keep up with is measured, as the lag.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from serve.bench.backend import Backend
from serve.bench.exchange import Outcome, exchange
from serve.bench.workload import Item

TICK_S = 0.02


class Lag(NamedTuple):
    """How late the client itself was; figures of a client that cannot keep up mean little.

    Attributes:
        send_s: Most between a request's planned time and when its turn came to be sent. Waiting
            for `max_concurrency` does not count: that is planned.
        loop_s: Most by which the event loop was late for a timer: so late may any time be that
            was taken.
    """

    send_s: float
    loop_s: float


class Measured(NamedTuple):
    """What a run gave.

    Attributes:
        outcomes: Of requests that ended, in the order of sending.
        duration_s: From the start to the last end.
        lag: Of the client.
        num_unfinished: Requests that were under way when it was interrupted.
        peak_in_flight: Most requests under way at once.
        is_partial: Whether it was interrupted.
    """

    outcomes: list[Outcome]
    duration_s: float
    lag: Lag
    num_unfinished: int
    peak_in_flight: int
    is_partial: bool


class Load:
    """One run over a list of requests."""

    def __init__(
        self,
        backend: Backend,
        model: str,
        items: Sequence[Item],
        arrivals: Sequence[float],
        *,
        max_concurrency: int | None = None,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Plan.

        Args:
            backend: Where to.
            model: Name of the model to ask for.
            items: What.
            arrivals: When each, in seconds after the start, not falling.
            max_concurrency: Requests under way at once; None for any number.
            on_end: Called with each outcome.
        """
        self._backend = backend
        # Written now: later it would take time from requests under way.
        self._plan = [
            (backend.prepare(item, model), item.prompt_tokens, arrival_s)
            for item, arrival_s in zip(items, arrivals, strict=True)
        ]
        self._turns = contextlib.nullcontext()
        if max_concurrency is not None:
            self._turns = asyncio.Semaphore(max_concurrency)
        self._on_end = on_end
        self._outcomes: dict[int, Outcome] = {}
        self._start = 0.0
        self._lag = Lag(0.0, 0.0)
        self._in_flight = 0
        self._peak = 0

    async def run(self, stop: asyncio.Event) -> Measured:
        """Send everything and wait for all ends, or until `stop` is set."""
        # A collection would stop the clock of every request under way.
        gc.collect()
        gc.freeze()
        self._start = time.perf_counter()
        ticker = asyncio.create_task(self._watch_loop())
        work = asyncio.create_task(self._send_all())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            in_flight, is_partial = self._in_flight, not work.done()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (ticker, stopped, work):
                task.cancel()
            await asyncio.gather(ticker, stopped, work, return_exceptions=True)
            gc.unfreeze()
        return Measured(
            [self._outcomes[place] for place in sorted(self._outcomes)],
            time.perf_counter() - self._start,
            self._lag,
            in_flight if is_partial else 0,
            self._peak,
            is_partial,
        )

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for place, (request, prompt_tokens, arrival_s) in enumerate(self._plan):
                wait_s = self._start + arrival_s - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(place, request, prompt_tokens, arrival_s))

    async def _send(self, place: int, request: Any, prompt_tokens: int, arrival_s: float) -> None:
        came = time.perf_counter()
        self._lag = self._lag._replace(send_s=max(self._lag.send_s, came - self._start - arrival_s))
        async with self._turns:
            turn = time.perf_counter()
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            try:
                outcome = await exchange(self._backend, request, prompt_tokens)
            finally:
                self._in_flight -= 1
        outcome = outcome._replace(start_s=outcome.start_s - self._start, queue_s=turn - came)
        self._outcomes[place] = outcome
        self._on_end(outcome)

    async def _watch_loop(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            late = time.perf_counter() - due
            self._lag = self._lag._replace(loop_s=max(self._lag.loop_s, late))
