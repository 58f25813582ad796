"""How many blocks a sequence of some home can have: ever, and now."""

from collections.abc import Sequence

from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import OutOfBlocks


def capacity(rmanagers: Sequence[RManager], home: int) -> int:
    """Tell how many blocks a sequence of `home` could have if nobody else had any."""
    return sum(
        rmanager.num_blocks if rmanager.instance == home else rmanager.lend_cap
        for rmanager in rmanagers
    )


def choose_home(
    rmanagers: Sequence[RManager], num_blocks: int, reserved: Sequence[int] | None
) -> int:
    """Choose the instance with most free blocks, the lowest index among equals.

    Args:
        rmanagers: One for each instance.
        num_blocks: Blocks that the sequence will need.
        reserved: For each instance, free blocks already promised; none by default.

    Raises:
        OutOfBlocks: `num_blocks` could not be had from any home, ever.
    """
    largest = max(capacity(rmanagers, home) for home in range(len(rmanagers)))
    if num_blocks > largest:
        raise OutOfBlocks(
            f"needed {num_blocks} blocks, a sequence can have {largest}",
            needed=num_blocks,
            free=largest,
        )
    free = [rmanager.num_free for rmanager in rmanagers]
    if reserved is not None:
        free = [free - promised for free, promised in zip(free, reserved, strict=True)]
    return free.index(max(free))


def room(rmanagers: Sequence[RManager], home: int, reserved: Sequence[int]) -> int:
    """Count the blocks a new sequence of `home` could be given, beside those promised.

    Args:
        rmanagers: One for each instance.
        home: Its home.
        reserved: For each instance, blocks promised to sequences of that home.

    Returns:
        Blocks; below zero where more is promised than there is.
    """
    found = rmanagers[home].num_free - reserved[home]
    if not any(rmanager.lend_cap for rmanager in rmanagers):
        return found
    for instance, rmanager in enumerate(rmanagers):
        if instance != home:
            # What another home was promised and does not have, it will borrow too.
            found += min(rmanager.lendable(home), rmanager.num_free - reserved[instance])
    return found
