"""The global view: hears heartbeats, proposes who should lend to whom."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from distkv_jax.cache.ledger import Ledger
from distkv_jax.cache.messages import Heartbeat
from distkv_jax.cache.placement import PlacementMap
from distkv_jax.errors import ConfigError, InvariantError

Distance: TypeAlias = Callable[[int, int], float] | Sequence[Sequence[float]]
"""Cost of communication from one instance to another: a function, or `matrix[from][to]`."""


class GManager:
    """Knows what every instance said last, and decides nothing alone.

    All it knows is soft state and may be old: an rManager may refuse what is proposed here, and
    a new gManager is as good as the old one once every instance was heard in full.

    Attributes:
        ledger: Who has how much free, lent and borrowed.
        placement: Where each request's blocks are.
    """

    def __init__(self, num_instances: int, distance: Distance | None = None) -> None:
        self.num_instances = num_instances
        self.ledger = Ledger(num_instances)
        self.placement = PlacementMap(num_instances)
        self._distance = _as_function(distance, num_instances)

    def receive(self, heartbeat: Heartbeat) -> None:
        """Take in a heartbeat; a duplicate or one that comes too late changes nothing.

        Raises:
            InvariantError: It names an instance that does not exist.
        """
        if not 0 <= heartbeat.instance < self.num_instances:
            raise InvariantError(
                f"heartbeat of instance {heartbeat.instance}, expected below {self.num_instances}"
            )
        self.ledger.apply(heartbeat)
        self.placement.apply(heartbeat)

    def propose_creditors(self, home: int, count: int) -> tuple[int, ...]:
        """List who should be asked to lend `count` blocks to `home`, best first.

        Ordered by cost of communication, then most lendable space, then lowest index.

        Args:
            home: The instance that is short of blocks.
            count: Blocks wanted; the list ends where it covers them, as far as is known.
        """
        offers: list[tuple[float, int, int]] = []
        for instance in range(self.num_instances):
            num_lendable = self.ledger.row(instance).num_lendable
            if instance != home and num_lendable:
                offers.append((self._distance(home, instance), -num_lendable, instance))
        creditors: list[int] = []
        for _, negated_lendable, instance in sorted(offers):
            if count <= 0:
                break
            count += negated_lendable
            creditors.append(instance)
        return tuple(creditors)


def _as_function(distance: Distance | None, num_instances: int) -> Callable[[int, int], float]:
    if distance is None:
        return lambda a, b: 0.0
    if callable(distance):
        return distance
    matrix = distance
    if len(matrix) != num_instances or any(len(row) != num_instances for row in matrix):
        raise ConfigError(
            f"distance has rows of {[len(row) for row in matrix]} columns, "
            f"expected {num_instances} of {num_instances}"
        )
    return lambda a, b: matrix[a][b]
