"""The blocks of one instance: which are free, and how many sequences hold each other one."""

from collections.abc import Sequence
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

    Invariant: every block is either free with count 0, or held with count >= 1.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"num_blocks={num_blocks} must be at least 1")
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        # A stack, top last: the lowest blocks first, then what was released last.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def count(self, block: int) -> int:
        """Tell how many hold `block`; 0 is free."""
        return self._counts[block]

    def take(self, count: int) -> tuple[int, ...]:
        """Hold `count` free blocks; the same history gives the same blocks.

        Raises:
            OutOfBlocks: Fewer than `count` blocks are free; nothing was taken.
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
        for block in blocks:
            self._counts[block] = 1
        return blocks

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
            InvariantError: A block is lost, free twice, or both free and held.
        """
        held = sum(count > 0 for count in self._counts)
        if held + len(self._free) != self.num_blocks:
            raise InvariantError(
                f"{held} held + {len(self._free)} free blocks, expected {self.num_blocks}"
            )
        if len(set(self._free)) != len(self._free):
            raise InvariantError("a block is in the free list twice")
        for block in self._free:
            if self._counts[block] != 0:
                raise InvariantError(f"block {block} is free with count {self._counts[block]}")

    def _check_held(self, blocks: Sequence[int]) -> None:
        if len(set(blocks)) != len(blocks):
            raise InvariantError(f"blocks {list(blocks)} name one twice")
        for block in blocks:
            if not 0 <= block < self.num_blocks:
                raise InvariantError(f"block {block} of a pool of {self.num_blocks}")
            if self._counts[block] == 0:
                raise InvariantError(f"block {block} is not held")
