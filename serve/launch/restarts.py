"""When what has died is started again: at once, then less and less often, then no more."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Before a new start; twice as long every time, up to the longest."""
STEADY_S = 60.0
"""What lived so long counts as new when it dies."""


class Restarts:
    """Counts the new starts in a row of one process, or of a service.

    Attributes:
        count: New starts since it last lived long.
    """

    def __init__(self, max_restarts: int) -> None:
        """Begin.

        Args:
            max_restarts: In a row, at least 0.
        """
        self.count = 0
        self._max_restarts = max_restarts

    def next_wait_s(self, lived_s: float) -> float | None:
        """Count a new start after a life of `lived_s`; None if there were enough."""
        if lived_s >= STEADY_S:
            self.count = 0
        if self.count >= self._max_restarts:
            return None
        # Without the bound on the exponent a float would overflow.
        wait_s = min(FIRST_WAIT_S * 2 ** min(self.count, 30), LONGEST_WAIT_S)
        self.count += 1
        return wait_s
