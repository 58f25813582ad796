"""Comparing what the processes of a world read of the same step."""

MAX_KEPT = 4096
"""Steps whose digests wait for a process that never read them, as after a failure."""


class Digests:
    """Digests by step, until every process has given its own."""

    def __init__(self, num_hosts: int) -> None:
        self._num_hosts = num_hosts
        self._steps: dict[int, dict[int, bytes]] = {}

    def add(self, rank: int, number: int, digest: bytes) -> str | None:
        """Take one in; says how it differs from another one of the same step."""
        ranks = self._steps.setdefault(number, {})
        other = next(((at, one) for at, one in ranks.items() if one != digest), None)
        ranks[rank] = digest
        if len(ranks) == self._num_hosts:
            del self._steps[number]
        while len(self._steps) > MAX_KEPT:
            del self._steps[next(iter(self._steps))]
        if other is None:
            return None
        (low, low_digest), (high, high_digest) = sorted([other, (rank, digest)])
        return (
            f"step {number} diverged: rank {low} has tokens of digest {low_digest.hex()}, "
            f"rank {high} of {high_digest.hex()}"
        )
