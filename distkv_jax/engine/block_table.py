"""A sequence's blocks: in token order, and as a growing list per instance ready for the plan."""

from collections.abc import Mapping

import numpy as np

from distkv_jax.cache.block import Place

GONE = Place(-1, -1)
"""Of a block that no table has held since its sequence was preempted."""


class LocalBlocks:
    """The blocks of one sequence on one instance, in token order, as arrays.

    Appending is amortised O(1) and reading needs no copy, because a step may copy thousands of
    entries of a long sequence into its plan.
    """

    def __init__(self) -> None:
        self._ids = np.empty(4, np.int32)
        self._starts = np.empty(4, np.int32)
        self._begin = 0
        self._end = 0

    def append(self, index: int, start: int) -> None:
        """Add a block whose first token is at position `start`, after all others."""
        if self._end == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._starts = np.concatenate([self._starts, np.empty_like(self._starts)])
        self._ids[self._end], self._starts[self._end] = index, start
        self._end += 1

    def insert(self, index: int, start: int) -> None:
        """Add a block whose first token is at position `start`, wherever that is in the order."""
        at = self._begin + int(np.searchsorted(self.starts, start))
        self.append(index, start)
        self._ids[at + 1 : self._end] = self._ids[at : self._end - 1].copy()
        self._starts[at + 1 : self._end] = self._starts[at : self._end - 1].copy()
        self._ids[at], self._starts[at] = index, start

    def remove(self, start: int) -> None:
        """Forget the block whose first token is at position `start`."""
        at = self._begin + int(np.searchsorted(self.starts, start))
        self._ids[at : self._end - 1] = self._ids[at + 1 : self._end].copy()
        self._starts[at : self._end - 1] = self._starts[at + 1 : self._end].copy()
        self._end -= 1

    def drop_first(self) -> None:
        """Forget the first block."""
        self._begin += 1

    @property
    def ids(self) -> np.ndarray:
        """Blocks of the instance's pool."""
        return self._ids[self._begin : self._end]

    @property
    def starts(self) -> np.ndarray:
        """Position of each block's first token, increasing."""
        return self._starts[self._begin : self._end]

    def visible(self, first: int, last: int) -> tuple[int, int]:
        """Range of the lists whose tokens have positions within [first, last], given full blocks.

        Args:
            first: First visible position; the caller has subtracted block_size - 1 for the block
                that contains it.
            last: Last visible position.
        """
        begin, end = np.searchsorted(self.starts, (first, last + 1))
        return int(begin), int(end)


class BlockTable:
    """Where a sequence's tokens are; every block but the last is full.

    Invariant: the blocks cover positions [dropped * block_size, len * block_size) without a gap.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.places: list[Place] = []
        self.local: dict[int, LocalBlocks] = {}
        self.num_dropped = 0

    @property
    def capacity(self) -> int:
        """Tokens that the table has slots for, those that left the window included."""
        return len(self.places) * self.block_size

    def append(self, places: tuple[Place, ...]) -> None:
        """Add blocks at the end."""
        for place in places:
            local = self.local.setdefault(place.instance, LocalBlocks())
            local.append(place.index, self.capacity)
            self.places.append(place)

    def skip(self, count: int) -> None:
        """Begin behind `count` blocks that have left the window already."""
        if count:
            self.places = [GONE] * count
            self.num_dropped = count

    def place_of(self, position: int) -> Place:
        """The block that holds a position."""
        return self.places[position // self.block_size]

    def drop_before(self, position: int) -> tuple[Place, ...]:
        """Forget the blocks whose tokens all lie before a position, and say which they were."""
        keep = min(max(position, 0) // self.block_size, len(self.places))
        dropped = tuple(self.places[self.num_dropped : keep])
        for place in dropped:
            local = self.local[place.instance]
            local.drop_first()
            if not len(local.ids):
                del self.local[place.instance]
        self.num_dropped = max(self.num_dropped, keep)
        return dropped

    def relocate(self, moves: Mapping[Place, Place]) -> None:
        """Say that blocks live elsewhere from now on, all at once: two may have changed places.

        Raises:
            KeyError: The table does not hold one of them; nothing has changed.
        """
        found = {
            place: index
            for index, place in enumerate(self.places)
            if place in moves and index >= self.num_dropped
        }
        missing = moves.keys() - found.keys()
        if missing:
            raise KeyError(f"the table does not hold {sorted(missing)}")
        for source, index in found.items():
            self.local[source.instance].remove(index * self.block_size)
        for source, index in found.items():
            destination = moves[source]
            self.places[index] = destination
            local = self.local.setdefault(destination.instance, LocalBlocks())
            local.insert(destination.index, index * self.block_size)
        for instance in {source.instance for source in moves}:
            if not len(self.local[instance].ids):
                del self.local[instance]

    @property
    def held(self) -> tuple[Place, ...]:
        """The blocks still held, in token order."""
        return tuple(self.places[self.num_dropped :])
