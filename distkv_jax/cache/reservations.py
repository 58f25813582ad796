"""One instance's reservations: blocks kept for a move until its data come or its lease ends."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from distkv_jax.cache.messages import BlockEpoch, ReservationId
from distkv_jax.errors import InvariantError


class Reservation(NamedTuple):
    """Blocks kept for a move.

    Attributes:
        request_id: Whose blocks shall come.
        home: Instance that they will be charged to.
        num_blocks: How many are kept.
        until: Last step at which they are.
        blocks: Which ones.
    """

    request_id: str
    home: int
    num_blocks: int
    until: int
    blocks: tuple[int, ...] = ()


class Reservations:
    """Remembers live reservations, and ended ones while a message about them could still come.

    A message about a reservation that comes after its lease is refused for that alone, so ended
    ones are forgotten when their lease ends.

    Invariant: a reservation is live or ended, never both, and none outlives its lease.

    Attributes:
        step: The latest that was heard of.
        arrived: For each block, the last reservation through which data came, and the block's
            epoch then: that commit can be undone in that epoch, however late.
    """

    def __init__(self) -> None:
        self.step = 0
        self.arrived: dict[int, tuple[BlockEpoch, ReservationId]] = {}
        self._live: dict[ReservationId, Reservation] = {}
        self._ended: dict[ReservationId, tuple[int, bool]] = {}
        self._by_home: Counter[int] = Counter()

    def live(self, name: ReservationId) -> Reservation | None:
        """Look up a reservation that holds."""
        return self._live.get(name)

    def is_ended(self, name: ReservationId) -> bool:
        """Whether a reservation was committed or released, as far as is remembered."""
        return name in self._ended

    def is_committed(self, name: ReservationId) -> bool:
        """Whether its data came, as far as is remembered."""
        return name in self._ended and self._ended[name][1]

    def num_reserved(self, *, except_home: int) -> int:
        """Count the blocks kept for all homes but one."""
        return self._by_home.total() - self._by_home[except_home]

    def add(self, name: ReservationId, reservation: Reservation) -> None:
        """Begin a reservation that was not there before."""
        self._live[name] = reservation
        self._by_home[reservation.home] += len(reservation.blocks)

    def end(self, name: ReservationId, *, until: int, is_committed: bool) -> Reservation | None:
        """End a reservation, or see to it that it never begins.

        Args:
            name: The reservation.
            until: Last step at which a message about it could still matter.
            is_committed: Whether its data came.

        Returns:
            What it was, where it was live.
        """
        reservation = self._live.pop(name, None)
        if reservation is not None:
            self._by_home[reservation.home] -= len(reservation.blocks)
        self._ended[name] = (until, is_committed)
        return reservation

    def expire(self, step: int) -> list[Reservation]:
        """Go on to `step`, and end what was reserved until an earlier one.

        A step that is not later than the one before changes nothing.

        Returns:
            What they were.
        """
        self.step = max(self.step, step)
        names = [name for name, kept in self._live.items() if kept.until < self.step]
        expired = [self._live.pop(name) for name in names]
        for reservation in expired:
            self._by_home[reservation.home] -= len(reservation.blocks)
        self._ended = {name: ended for name, ended in self._ended.items() if ended[0] >= self.step}
        return expired

    def check(self, reserved: Iterable[int]) -> None:
        """Verify the class invariant, and that exactly `reserved` blocks are kept, each once.

        Raises:
            InvariantError: It is broken.
        """
        kept = Counter(block for live in self._live.values() for block in live.blocks)
        if kept != Counter(reserved):
            raise InvariantError(f"blocks {sorted(reserved)} reserved, expected {sorted(kept)}")
        if self._by_home.total() != kept.total():
            raise InvariantError(f"{self._by_home} reserved by home, expected {kept.total()}")
        for name, live in self._live.items():
            if live.until < self.step or name in self._ended:
                raise InvariantError(f"{name} lives at step {self.step}, leased to {live.until}")
