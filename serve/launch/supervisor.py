"""Keeps a service of several processes up: when its world is lost, a new one is started."""

import contextlib
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from serve.launch.process import Asked, Events, say_end
from serve.launch.restarts import Restarts
from serve.launch.world import World


def supervise(
    commands: Callable[[], Sequence[Sequence[str]]],
    labels: Sequence[str],
    *,
    grace_s: float,
    max_restarts: int,
) -> int:
    """Start all processes, show what they say, and wait until they have ended for good.

    SIGTERM or SIGINT goes to rank 0, which drains; the others end with it. Before the world is up
    the end of one is that of all. From then on ranks that may come again do, and when rank 0 is
    lost all are started anew.

    Args:
        commands: Makes the command of every rank, for each world.
        labels: What stands before the lines of every rank.
        grace_s: Seconds to drain and end in, after a signal.
        max_restarts: New starts in a row, of a rank and of all; at least 0.

    Returns:
        0 if all ended in order, else the exit code of the one that ended first otherwise in the
        last world; 128 and the signal's number if one was killed.

    Raises:
        OSError: A process cannot be started; none runs.
    """
    events: Events = queue.SimpleQueue()
    restarts = Restarts(max_restarts)
    has_been_up = False
    with signals_into(events):
        while True:
            world = World(commands(), labels, events, grace_s=grace_s, max_restarts=max_restarts)
            over = world.run()
            has_been_up = has_been_up or over.up_s is not None
            if over.blamed is None:
                return over.code
            told = over.how
            if over.is_lost and has_been_up:
                before = restarts.count
                wait_s = restarts.next_wait_s(over.up_s or 0.0)
                if wait_s is not None:
                    told += f", the service is started again in {wait_s:g} s"
                    say_end(over.blamed, f"{told} ({restarts.count} of {max_restarts})")
                    if is_asked_within(wait_s, events):
                        return over.code
                    continue
                told += f" again after {before} new starts" if before else ""
            say_end(over.blamed, told, prefix="error: ")
            return over.code


@contextlib.contextmanager
def signals_into(events: Events) -> Iterator[None]:
    """Put SIGTERM and SIGINT into the queue, which a signal's handler may do."""

    def put(number: int, _: object) -> None:
        events.put(Asked(number))

    before = {number: signal.signal(number, put) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_asked_within(wait_s: float, events: Events) -> bool:
    """Wait, but not after a signal; other news are of processes that are gone."""
    deadline = time.monotonic() + wait_s
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            if isinstance(events.get(timeout=left), Asked):
                return True
    return False
