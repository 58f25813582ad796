"""How often streams are given their pieces, so that writing leaves the processor to the engine."""

import time

SHARE = 0.05
"""Of one core, that the event loop's thread may take while tokens flow."""
LONGEST_S = 0.1
"""Nobody who reads along waits longer than this for the sake of the share."""
WEIGHT = 0.25
"""Of the newest round in the mean."""


class Pace:
    """Times rounds: in each, all streams with news are woken, and write a piece.

    With few streams the rounds are as close as asked; with many, what a round costs decides. The
    event loop's thread owns it, as it measures that thread.
    """

    def __init__(self, least_s: float) -> None:
        """Begin.

        Args:
            least_s: Seconds between two rounds at least.
        """
        self._least_s = least_s
        self._cost_s = 0.0
        self._measured_s = time.thread_time()

    def next_round(self) -> float:
        """Begin a round; gives the seconds until the next may begin."""
        now_s = time.thread_time()
        cost_s, self._measured_s = now_s - self._measured_s, now_s
        self._cost_s += WEIGHT * (cost_s - self._cost_s)
        return max(self._least_s, min(LONGEST_S, self._cost_s / SHARE))
