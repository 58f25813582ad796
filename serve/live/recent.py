"""The requests under way, and how long tokens took lately."""

import collections
import math
from collections.abc import Iterable
from typing import NamedTuple

from serve.observe.record import Observer, Record

WINDOW = 10
"""Buckets that percentiles are of; one is begun about every second."""
LOG_STEP = math.log(1.02)
"""Durations are counted in classes that are 2 % apart, so a percentile is within 1 %."""
SHORTEST_S = 1e-6


class Numbered(NamedTuple):
    """A request under way and how many came before it, since the server started."""

    number: int
    record: Record


class Latency(NamedTuple):
    """Seconds that some events took.

    Attributes:
        median_s: Half took no longer.
        p99_s: 99 % took no longer.
    """

    median_s: float
    p99_s: float


class Durations:
    """Counts durations of the last buckets; its size does not grow with their number."""

    def __init__(self) -> None:
        self._buckets = collections.deque([collections.Counter[int]()], maxlen=WINDOW)

    def add(self, seconds: float) -> None:
        """Count one."""
        self._buckets[-1][round(math.log(max(seconds, SHORTEST_S)) / LOG_STEP)] += 1

    def rotate(self) -> None:
        """Begin a bucket and forget the oldest."""
        self._buckets.append(collections.Counter())

    def latency(self) -> Latency | None:
        """Sum the window up; None where nothing happened in it."""
        counts: collections.Counter[int] = collections.Counter()
        for bucket in self._buckets:
            counts.update(bucket)
        if not counts:
            return None
        return Latency(percentile(counts.items(), 0.5), percentile(counts.items(), 0.99))


def percentile(counts: Iterable[tuple[int, int]], share: float) -> float:
    """Read a percentile, in seconds, from class numbers and how many are in each."""
    ordered = sorted(counts)
    left = math.ceil(share * sum(count for _, count in ordered))
    for number, count in ordered:
        left -= count
        if left <= 0:
            return math.exp(number * LOG_STEP)
    raise ValueError("there are no durations")


class Recent(Observer):
    """Hears of every request; the event loop owns it.

    Attributes:
        first_tokens: Times from a request's arrival to its first token.
        gaps: Times between two tokens of a sample.
    """

    def __init__(self) -> None:
        self.first_tokens = Durations()
        self.gaps = Durations()
        self._count = 0
        self._under_way: dict[int, Numbered] = {}

    def under_way(self) -> dict[int, Numbered]:
        """List the requests that have not ended, in the order they came."""
        return dict(self._under_way)

    def rotate(self) -> None:
        """Let the window of latencies go on."""
        self.first_tokens.rotate()
        self.gaps.rotate()

    def on_begin(self, record: Record) -> None:
        """Number a request."""
        self._under_way[id(record)] = Numbered(self._count, record)
        self._count += 1

    def on_first_token(self, record: Record) -> None:
        """Count how long it took."""
        if record.first_token is not None:
            self.first_tokens.add(record.first_token - record.arrival)

    def on_gap(self, record: Record, seconds: float) -> None:
        """Count a gap."""
        del record
        self.gaps.add(seconds)

    def on_end(self, record: Record) -> None:
        """Forget a request."""
        self._under_way.pop(id(record), None)
