"""Requests with the paper's shapes of lengths, scaled to the pools at hand.

Source: Infinite-LLM, arXiv 2401.02669v2, evaluation: traces 0 to 2 have contexts of 1 to 60
thousand tokens with three spreads, 3 to 8 reach 200 thousand to 2 million. The text gives the
ranges; how lengths lie between them is ours: log-normal around a median, cut at both ends.
"""

import random
from typing import NamedTuple


class Trace(NamedTuple):
    """A distribution of lengths, in tokens of the paper's models.

    Attributes:
        shortest: Least tokens of a request.
        longest: Most tokens of a request.
        median: Half of the requests are shorter.
        spread: Standard deviation of the logarithm.
    """

    shortest: int
    longest: int
    median: int
    spread: float


TRACES = {
    "0": Trace(1_000, 60_000, 6_000, 0.4),
    "1": Trace(1_000, 60_000, 6_000, 0.8),
    "2": Trace(1_000, 60_000, 6_000, 1.2),
    "3": Trace(1_000, 200_000, 6_000, 1.4),
    "4": Trace(1_000, 280_000, 6_000, 1.5),
    "5": Trace(1_000, 450_000, 6_000, 1.6),
    "6": Trace(1_000, 600_000, 6_000, 1.7),
    "7": Trace(1_000, 1_200_000, 6_000, 1.9),
    "8": Trace(1_000, 2_000_000, 6_000, 2.1),
    "uniform": Trace(2_000, 6_000, 4_000, 0.3),
}
"""By the paper's numbers, and one of equal short requests."""

OUTPUT_SHARE = 0.25
"""Part of a request's tokens that are generated."""


class Lengths(NamedTuple):
    """One request.

    Attributes:
        prompt: Tokens of the prompt.
        output: Tokens to generate.
    """

    prompt: int
    output: int

    @property
    def total(self) -> int:
        """KV tokens it holds at its end."""
        return self.prompt + self.output


def draw(
    trace: Trace, count: int, *, scale: float, longest: int | None = None, seed: int = 0
) -> list[Lengths]:
    """Draw requests.

    Args:
        trace: Shape of the lengths.
        count: How many.
        scale: Tokens here for one of the paper's, below 1 for small models.
        longest: Cut lengths at this many tokens here; by default where the trace ends.
        seed: The same seed gives the same requests.
    """
    rng = random.Random(seed)
    most = trace.longest * scale if longest is None else min(longest, trace.longest * scale)
    requests = []
    while len(requests) < count:
        total = rng.lognormvariate(0, trace.spread) * trace.median * scale
        if trace.shortest * scale <= total <= most:
            output = max(2, round(total * OUTPUT_SHARE))
            requests.append(Lengths(max(2, round(total) - output), output))
    return requests
