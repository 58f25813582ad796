"""A table knows where every position is, and lists each instance's blocks in token order."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from distkv_jax.cache.block import Place
from distkv_jax.engine.block_table import BlockTable, LocalBlocks

BLOCK_SIZE = 4


def make_table(*instances: int) -> BlockTable:
    """Make a table whose i-th block is block 10 + i of the given instance."""
    table = BlockTable(BLOCK_SIZE)
    table.append(tuple(Place(instance, 10 + at) for at, instance in enumerate(instances)))
    return table


def test_positions_are_found_in_token_order() -> None:
    table = make_table(1, 0, 1)

    assert table.capacity == 12
    assert table.place_of(0) == table.place_of(3) == Place(1, 10)
    assert table.place_of(4) == Place(0, 11)
    assert table.place_of(11) == Place(1, 12)


def test_each_instance_has_its_own_blocks_in_token_order() -> None:
    table = make_table(1, 0, 1)

    np.testing.assert_array_equal(table.local[1].ids, [10, 12])
    np.testing.assert_array_equal(table.local[1].starts, [0, 8])
    np.testing.assert_array_equal(table.local[0].ids, [11])
    np.testing.assert_array_equal(table.local[0].starts, [4])


@pytest.mark.parametrize(
    ("before", "num_dropped"), [(-3, 0), (3, 0), (4, 1), (7, 1), (8, 2), (12, 3), (99, 3)]
)
def test_only_blocks_wholly_before_a_position_are_dropped(before: int, num_dropped: int) -> None:
    table = make_table(1, 0, 1)
    places = tuple(table.places)

    assert table.drop_before(before) == places[:num_dropped]
    assert table.held == places[num_dropped:]
    assert table.num_dropped == num_dropped
    # What a position's slot is does not change.
    assert table.capacity == 12
    assert table.place_of(8) == Place(1, 12)
    held = {
        (instance, block) for instance, local in table.local.items() for block in local.ids.tolist()
    }
    assert held == set(places[num_dropped:])


def test_dropping_again_drops_nothing_twice() -> None:
    table = make_table(0, 0, 0)

    assert table.drop_before(5) == (Place(0, 10),)
    assert table.drop_before(5) == table.drop_before(2) == ()
    assert table.drop_before(8) == (Place(0, 11),)
    np.testing.assert_array_equal(table.local[0].starts, [8])


def test_lists_grow_past_their_first_allocation() -> None:
    table = make_table(*[0] * 100)

    np.testing.assert_array_equal(table.local[0].ids, 10 + np.arange(100))
    np.testing.assert_array_equal(table.local[0].starts, BLOCK_SIZE * np.arange(100))


@given(
    starts=st.sets(st.integers(0, 30), max_size=12),
    num_dropped=st.integers(0, 3),
    first=st.integers(-5, 130),
    count=st.integers(1, 20),
)
def test_the_visible_range_is_what_a_scan_finds(
    starts: set[int], num_dropped: int, first: int, count: int
) -> None:
    local = LocalBlocks()
    listed = [BLOCK_SIZE * start for start in sorted(starts)]
    for index, start in enumerate(listed):
        local.append(index, start)
    for _ in range(min(num_dropped, len(listed))):
        local.drop_first()
    last = first + count - 1

    begin, end = local.visible(first, last)

    assert local.starts[begin:end].tolist() == [
        start for start in listed[num_dropped:] if first <= start <= last
    ]


@given(
    instances=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    num_dropped=st.integers(0, 3),
    data=st.data(),
)
def test_a_table_with_moved_blocks_is_the_table_built_in_their_places(
    instances: list[int], num_dropped: int, data: st.DataObject
) -> None:
    table = make_table(*instances)
    num_dropped = min(num_dropped, len(instances))
    table.drop_before(num_dropped * BLOCK_SIZE)
    held = list(table.held)
    sources = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
    # Some change places, some go to blocks that nobody had.
    others = [Place(instance, 100 + number) for number in range(4) for instance in range(3)]
    targets = data.draw(st.permutations(sources + others))
    moves = dict(zip(sources, targets, strict=False))

    table.relocate(moves)

    expected = BlockTable(BLOCK_SIZE)
    expected.append(
        tuple(
            [
                *make_table(*instances).places[:num_dropped],
                *[moves.get(place, place) for place in held],
            ]
        )
    )
    expected.drop_before(num_dropped * BLOCK_SIZE)
    assert table.held == expected.held
    assert set(table.local) == set(expected.local)
    for instance, local in table.local.items():
        np.testing.assert_array_equal(local.ids, expected.local[instance].ids)
        np.testing.assert_array_equal(local.starts, expected.local[instance].starts)


def test_a_block_that_a_table_does_not_hold_cannot_move() -> None:
    table = make_table(0, 1)

    with pytest.raises(KeyError, match="does not hold"):
        table.relocate({Place(0, 10): Place(1, 3), Place(2, 5): Place(0, 3)})

    assert table.held == make_table(0, 1).held
