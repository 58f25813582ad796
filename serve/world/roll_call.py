"""Who has come to a world, who was refused and why, and who is missing."""

import threading

from distkv_jax.errors import ConfigError
from distkv_jax.world.fingerprint import Fingerprint, differences

MAX_NAMED = 6
"""Differences that are told of one process."""


class RollCall:
    """Waits until every rank has come once, with the leader's fingerprint.

    Safe to use from several threads.
    """

    def __init__(self, num_hosts: int, fingerprint: Fingerprint) -> None:
        self._num_hosts = num_hosts
        self._fingerprint = fingerprint
        self._changed = threading.Condition()
        self._here = {0}
        self._refusals: list[str] = []
        self._is_over = False

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come."""
        return sorted(set(range(self._num_hosts)) - self._here)

    def enter(self, rank: int, num_hosts: int, fingerprint: Fingerprint) -> None:
        """Let a rank in.

        Raises:
            ConfigError: It cannot belong to this world; says what differs.
        """
        with self._changed:
            reason = self._reason_against(rank, num_hosts, fingerprint)
            if reason is not None:
                self.refuse(reason)
                raise ConfigError(reason)
            self._here.add(rank)
            self._changed.notify_all()

    def refuse(self, reason: str) -> None:
        """Remember why somebody was not let in, for who waits."""
        with self._changed:
            self._refusals.append(reason)

    def leave(self, rank: int) -> None:
        """Forget a rank that went before all were here."""
        with self._changed:
            if not self._is_over:
                self._here.discard(rank)

    def wait(self, timeout_s: float) -> None:
        """Wait until all are here.

        Raises:
            ConfigError: Some did not come in time, named with what was refused meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.missing, timeout_s)
            self._is_over = True
            self._changed.notify_all()
            if self.missing:
                ranks = ", ".join(map(str, self.missing))
                told = "".join(f"; refused was: {one}" for one in dict.fromkeys(self._refusals))
                raise ConfigError(
                    f"rank {ranks} of {self._num_hosts} did not join within {timeout_s:g} s{told}"
                )

    def wait_over(self) -> bool:
        """Wait until the leader stops waiting; whether all were here."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over)
            return not self.missing

    def _reason_against(self, rank: int, num_hosts: int, fingerprint: Fingerprint) -> str | None:
        if num_hosts != self._num_hosts:
            return f"num_hosts is {self._num_hosts} at the leader and {num_hosts} at rank {rank}"
        if not 0 < rank < self._num_hosts:
            return f"host_rank={rank} must be within 1..{self._num_hosts - 1} to follow"
        if rank in self._here:
            return f"rank {rank} is here already, two processes have the same host_rank"
        if self._is_over:
            return f"rank {rank} came when the world was closed"
        found = differences(self._fingerprint, fingerprint, rank=rank)
        if not found:
            return None
        more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        return "; ".join(found[:MAX_NAMED]) + more
