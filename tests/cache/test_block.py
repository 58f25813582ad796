"""Blocks are neither lost nor handed out twice, and every refusal leaves the pool as it was."""

import random

import pytest

from distkv_jax.cache.block import BlockPool
from distkv_jax.errors import ConfigError, InvariantError, OutOfBlocks


def test_take_gives_the_lowest_blocks_first():
    pool = BlockPool(5)

    assert pool.take(2) == (0, 1)
    assert pool.take(3) == (2, 3, 4)
    assert pool.num_free == 0


def test_take_gives_what_was_released_last_in_the_same_order():
    pool = BlockPool(5)
    blocks = pool.take(3)
    pool.release(blocks)

    assert pool.take(4) == (0, 1, 2, 3)


def test_take_nothing_takes_nothing():
    pool = BlockPool(2)

    assert pool.take(0) == ()
    assert pool.num_free == 2


def test_take_too_many_takes_nothing():
    pool = BlockPool(4)
    pool.take(3)

    with pytest.raises(OutOfBlocks, match="^needed 2 blocks, 1 free of 4$") as refused:
        pool.take(2)

    assert (refused.value.needed, refused.value.free) == (2, 1)
    assert pool.num_free == 1
    pool.check()


def test_negative_count_is_refused():
    with pytest.raises(InvariantError, match="^count=-1 must be at least 0$"):
        BlockPool(4).take(-1)


def test_empty_pool_is_refused():
    with pytest.raises(ConfigError, match="^num_blocks=0 must be at least 1$"):
        BlockPool(0)


def test_shared_block_is_free_after_its_last_release():
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.share(blocks)

    pool.release(blocks)
    assert (pool.count(0), pool.num_free) == (1, 1)
    pool.release(blocks)
    assert (pool.count(0), pool.num_free) == (0, 2)


@pytest.mark.parametrize("operation", ["share", "release"])
@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([0, 2], "block 2 is not held"),
        ([0, 4], "block 4 of a pool of 4"),
        ([0, -1], "block -1 of a pool of 4"),
        ([0, 1, 0], r"blocks \[0, 1, 0\] name one twice"),
    ],
)
def test_one_wrong_block_changes_none(operation: str, blocks: list[int], message: str):
    pool = BlockPool(4)
    pool.take(2)

    with pytest.raises(InvariantError, match=f"^{message}$"):
        getattr(pool, operation)(blocks)

    assert [pool.count(block) for block in range(4)] == [1, 1, 0, 0]
    pool.check()


def test_reserved_blocks_are_neither_free_nor_held():
    pool = BlockPool(4)

    assert pool.reserve(2) == (0, 1)
    assert (pool.num_free, pool.num_reserved, pool.num_held) == (2, 2, 0)
    pool.check()
    pool.hold_reserved({1: 3})
    assert (pool.count(0), pool.count(1)) == (0, 3)
    pool.free_reserved([0])
    assert (pool.num_free, pool.num_reserved, pool.num_held) == (3, 0, 1)
    pool.check()


def test_lifted_block_has_no_holder_left_and_is_kept():
    pool = BlockPool(2)
    pool.share(pool.take(1))

    pool.lift([0])

    assert (pool.count(0), pool.reserved, pool.num_free) == (0, {0}, 1)
    pool.check()


def test_epoch_counts_changes_of_hands():
    pool = BlockPool(2)
    pool.take(1)
    pool.share([0])
    pool.release([0])
    assert (pool.epoch(0), pool.epoch(1)) == (1, 0)

    pool.lift([0])
    pool.hold_reserved({0: 1})
    assert pool.epoch(0) == 2
    pool.release([0])
    pool.free_reserved(pool.reserve(2))
    assert (pool.epoch(0), pool.epoch(1)) == (2, 0)


def test_what_is_not_reserved_is_neither_held_nor_freed():
    pool = BlockPool(4)
    pool.reserve(1)
    pool.take(1)

    with pytest.raises(InvariantError, match=r"^blocks \[1, 2\] are not reserved$"):
        pool.hold_reserved({0: 1, 1: 1, 2: 1})
    with pytest.raises(InvariantError, match=r"^blocks \[1\] are not reserved$"):
        pool.free_reserved([0, 1])
    with pytest.raises(InvariantError, match=r"^counts \{0: 0\} must be at least 1$"):
        pool.hold_reserved({0: 0})
    with pytest.raises(InvariantError, match="^block 0 is not held$"):
        pool.lift([0])
    assert (pool.num_free, pool.num_reserved, pool.num_held) == (2, 1, 1)


def test_reserve_too_many_reserves_nothing():
    pool = BlockPool(2)

    with pytest.raises(OutOfBlocks, match="^needed 3 blocks, 2 free of 2$"):
        pool.reserve(3)
    assert pool.num_reserved == 0


@pytest.mark.parametrize(
    ("counts", "reserved", "message"),
    [
        ([0, 0], {1}, "block 1 is both free and reserved"),
        ([1, 0], {0}, "block 0 is reserved with count 1"),
    ],
)
def test_check_finds_a_reserved_block_in_another_state(
    counts: list[int], reserved: set[int], message: str
):
    pool = BlockPool(2)
    pool._counts, pool._reserved, pool._free = counts, reserved, [1] if counts == [0, 0] else []

    with pytest.raises(InvariantError, match=f"^{message}$"):
        pool.check()


@pytest.mark.parametrize(
    ("counts", "free", "message"),
    [
        ([1, 1, 0], [2, 1], "2 held \\+ 0 reserved \\+ 2 free blocks, expected 3"),
        ([1, 0, 0], [2], "1 held \\+ 0 reserved \\+ 1 free blocks, expected 3"),
        ([1, 0, 0], [2, 2], "a block is in the free list twice"),
        ([1, 0, 0], [0, 2], "block 0 is free with count 1"),
    ],
)
def test_check_finds_lost_and_doubled_blocks(counts: list[int], free: list[int], message: str):
    pool = BlockPool(3)
    pool._counts, pool._free = counts, free

    with pytest.raises(InvariantError, match=f"^{message}$"):
        pool.check()


@pytest.mark.parametrize("seed", range(10))
def test_random_histories_agree_with_a_dict_of_counts(seed: int):
    rng = random.Random(seed)
    pool = BlockPool(12)
    model: dict[int, int] = {}

    for _ in range(200):
        held = rng.sample(sorted(model), rng.randint(0, len(model)))
        match rng.choice(["take", "share", "release"]):
            case "take":
                count = rng.randint(0, 5)
                if count > 12 - len(model):
                    with pytest.raises(OutOfBlocks):
                        pool.take(count)
                else:
                    blocks = pool.take(count)
                    assert not set(blocks) & set(model)
                    model.update(dict.fromkeys(blocks, 1))
            case "share":
                pool.share(held)
                model.update({block: model[block] + 1 for block in held})
            case _:
                pool.release(held)
                model.update({block: model[block] - 1 for block in held})
                model = {block: count for block, count in model.items() if count}
        pool.check()
        assert {block: pool.count(block) for block in range(12) if pool.count(block)} == model
        assert pool.num_free == 12 - len(model)
