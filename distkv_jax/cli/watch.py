"""Looking at the pools while requests run, to remember the moment when most blocks were held."""

import contextlib
import threading
from collections.abc import Iterator

from distkv_jax.errors import EngineStopped
from distkv_jax.llm import LLM, PoolView

# A look waits for the end of a step by itself; this is the pause where no step runs.
PAUSE_S = 0.002


class Peak:
    """The fullest view of the pools that was seen.

    Attributes:
        view: The first of those with most blocks held; None before any was.
    """

    def __init__(self) -> None:
        self.view: PoolView | None = None
        self._num_held = 0

    def see(self, view: PoolView) -> None:
        """Keep `view` if it is fuller than what was seen before."""
        num_held = sum(usage.held for usage in view.usage)
        if num_held > self._num_held:
            self.view, self._num_held = view, num_held


@contextlib.contextmanager
def watch_pool(llm: LLM) -> Iterator[Peak]:
    """Watch from a thread of its own, about once a step, until the `with` ends."""
    peak = Peak()
    is_over = threading.Event()

    def look() -> None:
        with contextlib.suppress(EngineStopped):
            while not is_over.wait(PAUSE_S):
                peak.see(llm.pool())

    thread = threading.Thread(target=look, name="distkv-watch", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()
