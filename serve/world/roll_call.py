"""Who has come to a world, who was refused and why, and who is missing."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from distkv_jax.errors import ConfigError
from distkv_jax.world.fingerprint import Fingerprint, differences
from serve.proto.distkv.internal.v1 import world_pb2 as pb

MAX_REFUSALS = 64
"""Kept for who waits; the latest."""
MAX_NAMED = 6
"""Differences that are told of one process."""


class Caller(NamedTuple):
    """A process that waits to be let in.

    Attributes:
        rank: Which.
        pid: Its own, on its host.
        addresses: Of its host.
        answer: Done when the next epoch begins, or when there will be none.
    """

    rank: int
    pid: int
    addresses: frozenset[str]
    answer: "Future[pb.JoinResponse]"


class RollCall:
    """Holds those that come, with the leader's fingerprint, until an epoch begins with them.

    Safe to use from several threads.
    """

    def __init__(self, num_hosts: int, fingerprint: Fingerprint) -> None:
        self._num_hosts = num_hosts
        self._fingerprint = fingerprint
        self._changed = threading.Condition()
        self._waiting: dict[int, Caller] = {}
        self._members: set[int] = set()
        self._refusals: collections.deque[str] = collections.deque(maxlen=MAX_REFUSALS)
        self._closed: str | None = None

    @property
    def waiting(self) -> set[int]:
        """Ranks that wait to be let in."""
        with self._changed:
            return set(self._waiting)

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come."""
        return sorted(set(range(1, self._num_hosts)) - self.waiting)

    def enter(
        self,
        rank: int,
        num_hosts: int,
        fingerprint: Fingerprint,
        *,
        pid: int,
        addresses: frozenset[str],
    ) -> Caller:
        """Let a rank wait.

        Raises:
            ConfigError: It cannot belong to this world; says what differs.
        """
        with self._changed:
            reason = self._reason_against(rank, num_hosts, fingerprint)
            if reason is not None:
                self.refuse(reason)
                raise ConfigError(reason)
            self._waiting[rank] = caller = Caller(rank, pid, addresses, Future())
            self._changed.notify_all()
        return caller

    def refuse(self, reason: str) -> None:
        """Remember why somebody was not let in, for who waits."""
        with self._changed:
            self._refusals.append(reason)

    def leave(self, caller: Caller) -> None:
        """Forget one that went before it was let in."""
        with self._changed:
            if self._waiting.get(caller.rank) is caller:
                del self._waiting[caller.rank]
        caller.answer.cancel()

    def wait(self, timeout_s: float) -> None:
        """Wait until all are here.

        Raises:
            ConfigError: Some did not come in time, named with what was refused meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.missing, timeout_s)
            missing, refusals = self.missing, dict.fromkeys(self._refusals)
        if missing:
            self.close("not all ranks have joined in time")
            ranks = ", ".join(map(str, missing))
            told = "".join(f"; refused was: {one}" for one in refusals)
            raise ConfigError(
                f"rank {ranks} of {self._num_hosts} did not join within {timeout_s:g} s{told}"
            )

    def dismiss(self, ranks: set[int]) -> None:
        """Let ranks that were members come again: their epoch is over."""
        with self._changed:
            self._members -= ranks

    def admit(self, answer: Callable[[list[Caller]], list[pb.JoinResponse]]) -> None:
        """Begin an epoch with all that wait.

        Args:
            answer: What each is told, in the order of their ranks.
        """
        with self._changed:
            callers = [caller for _, caller in sorted(self._waiting.items())]
            callers = [one for one in callers if one.answer.set_running_or_notify_cancel()]
            self._waiting.clear()
            self._members = {caller.rank for caller in callers}
            for caller, response in zip(callers, answer(callers), strict=True):
                caller.answer.set_result(response)

    def close(self, why: str) -> None:
        """Send away all that wait or will come."""
        with self._changed:
            self._closed = why
            for caller in self._waiting.values():
                caller.answer.cancel()
            self._waiting.clear()

    @property
    def closed(self) -> str:
        """Why nobody is let in any more; empty where they are."""
        return self._closed or ""

    def _reason_against(self, rank: int, num_hosts: int, fingerprint: Fingerprint) -> str | None:
        if num_hosts != self._num_hosts:
            return f"num_hosts is {self._num_hosts} at the leader and {num_hosts} at rank {rank}"
        if not 0 < rank < self._num_hosts:
            return f"host_rank={rank} must be within 1..{self._num_hosts - 1} to follow"
        if rank in self._members or rank in self._waiting:
            return f"rank {rank} is here already, two processes have the same host_rank"
        if self._closed is not None:
            return f"rank {rank} came when the world was closed: {self._closed}"
        found = differences(self._fingerprint, fingerprint, rank=rank)
        if not found:
            return None
        more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        return "; ".join(found[:MAX_NAMED]) + more
