"""The blocks of one instance: which are free or reserved, and how many hold each other one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from distkv_jax.errors import ConfigError, InvariantError, OutOfBlocks


class Place(NamedTuple):
    """Where a block lives.

    Attributes:
        instance: Instance whose pool has it.
        index: Its index in that pool.
    """

    instance: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index: unused here)


class BlockPool:
    """Hands out the block ids of one instance and counts the holders of each.

    Holds no arrays: block *contents* live on the devices.
    One thread owns a pool; no method is safe to call from two.

    A block's *epoch* counts how often it changed hands: what was written about a block in an
    older epoch does not hold any more.

    Invariant: every block is free with count 0, reserved with count 0, or held with count >= 1.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"num_blocks={num_blocks} must be at least 1")
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._epochs = [0] * num_blocks
        self._reserved: set[int] = set()
        # A stack, top last: the lowest blocks first, then what was released last.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_reserved(self) -> int:
        """Blocks kept for somebody who does not hold them yet."""
        return len(self._reserved)

    @property
    def num_held(self) -> int:
        """Blocks somebody holds."""
        return self.num_blocks - len(self._free) - len(self._reserved)

    @property
    def reserved(self) -> frozenset[int]:
        """The reserved blocks."""
        return frozenset(self._reserved)

    def count(self, block: int) -> int:
        """Tell how many hold `block`; 0 is free or reserved."""
        return self._counts[block]

    def epoch(self, block: int) -> int:
        """Tell how often `block` has changed hands."""
        return self._epochs[block]

    def take(self, count: int) -> tuple[int, ...]:
        """Hold `count` free blocks; the same history gives the same blocks.

        Raises:
            OutOfBlocks: Fewer than `count` blocks are free; nothing was taken.
        """
        blocks = self.reserve(count)
        self.hold_reserved(dict.fromkeys(blocks, 1))
        return blocks

    def reserve(self, count: int) -> tuple[int, ...]:
        """Keep `count` free blocks that nobody holds yet.

        Raises:
            OutOfBlocks: Fewer than `count` blocks are free; nothing was reserved.
        """
        if count < 0:
            raise InvariantError(f"count={count} must be at least 0")
        if count > len(self._free):
            raise OutOfBlocks(
                f"needed {count} blocks, {len(self._free)} free of {self.num_blocks}",
                needed=count,
                free=len(self._free),
            )
        rest = len(self._free) - count
        blocks = tuple(reversed(self._free[rest:]))
        del self._free[rest:]
        self._reserved.update(blocks)
        return blocks

    def hold_reserved(self, counts: Mapping[int, int]) -> None:
        """Hold reserved blocks, by so many holders each; they change hands.

        Raises:
            InvariantError: One is not reserved, or a count is below 1; nothing is held.
        """
        self._check_reserved(counts)
        if any(count < 1 for count in counts.values()):
            raise InvariantError(f"counts {dict(counts)} must be at least 1")
        for block, count in counts.items():
            self._reserved.remove(block)
            self._counts[block] = count
            self._epochs[block] += 1

    def free_reserved(self, blocks: Sequence[int]) -> None:
        """Free reserved blocks.

        Raises:
            InvariantError: One is not reserved; nothing is free.
        """
        self._check_reserved(blocks)
        self._reserved.difference_update(blocks)
        self._free.extend(reversed(blocks))

    def lift(self, blocks: Sequence[int]) -> None:
        """Take held blocks from all their holders, and keep them reserved.

        Raises:
            InvariantError: One is free, unknown or named twice; nothing was lifted.
        """
        self._check_held(blocks)
        for block in blocks:
            self._counts[block] = 0
        self._reserved.update(blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Count one holder more for each of `blocks`.

        Raises:
            InvariantError: One is free, unknown or named twice; nothing was shared.
        """
        self._check_held(blocks)
        for block in blocks:
            self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Count one holder less for each of `blocks`; those without one are free again.

        Raises:
            InvariantError: One is free, unknown or named twice; nothing was released.
        """
        self._check_held(blocks)
        for block in reversed(blocks):
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)

    def check(self) -> None:
        """Verify the class invariant over all blocks.

        Raises:
            InvariantError: A block is lost, free twice, or in two states.
        """
        held = sum(count > 0 for count in self._counts)
        if held + len(self._reserved) + len(self._free) != self.num_blocks:
            raise InvariantError(
                f"{held} held + {len(self._reserved)} reserved + {len(self._free)} free blocks, "
                f"expected {self.num_blocks}"
            )
        if len(set(self._free)) != len(self._free):
            raise InvariantError("a block is in the free list twice")
        for block in self._free:
            if self._counts[block] != 0:
                raise InvariantError(f"block {block} is free with count {self._counts[block]}")
            if block in self._reserved:
                raise InvariantError(f"block {block} is both free and reserved")
        for block in self._reserved:
            if self._counts[block] != 0:
                raise InvariantError(f"block {block} is reserved with count {self._counts[block]}")

    def _check_reserved(self, blocks: Iterable[int]) -> None:
        missing = [block for block in blocks if block not in self._reserved]
        if missing:
            raise InvariantError(f"blocks {missing} are not reserved")

    def _check_held(self, blocks: Sequence[int]) -> None:
        if len(set(blocks)) != len(blocks):
            raise InvariantError(f"blocks {list(blocks)} name one twice")
        for block in blocks:
            if not 0 <= block < self.num_blocks:
                raise InvariantError(f"block {block} of a pool of {self.num_blocks}")
            if self._counts[block] == 0:
                raise InvariantError(f"block {block} is not held")
