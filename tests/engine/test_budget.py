"""A step never asks for more rows, tiles or list entries than its largest shape has."""

from distkv_jax.cache.block import Place
from distkv_jax.engine.block_table import BlockTable
from distkv_jax.engine.budget import Budget
from distkv_jax.engine.shapes import ShapeTable


def make_budget(
    *, decode_rows: int = 2, prefill_tiles: int = 3, entries: int = 5, instances: int = 2
) -> Budget:
    shapes = ShapeTable(
        max_decode_rows=decode_rows,
        max_prefill_tiles=prefill_tiles,
        tile=4,
        entries=entries,
        instances=instances,
        pooling=True,
    )
    return Budget(shapes, instances)


def make_table(*instances: int) -> BlockTable:
    table = BlockTable(4)
    table.append(tuple(Place(instance, at) for at, instance in enumerate(instances)))
    return table


def test_a_decode_row_takes_a_row_an_output_and_its_entries() -> None:
    budget = make_budget()

    assert budget.take_decode(1, make_table(0, 1, 1))
    assert budget.decode_rows == [2, 1]
    assert budget.output_rows == [5, 4]
    assert budget.entries == [4, 3]


def test_a_decode_row_that_does_not_fit_takes_nothing() -> None:
    budget = make_budget(decode_rows=1)
    assert budget.take_decode(0, make_table(0))
    left = (list(budget.output_rows), list(budget.entries))

    assert not budget.take_decode(0, make_table(0))
    assert not budget.take_decode(1, make_table(*[0] * 5))
    assert (budget.output_rows, budget.entries) == left
    assert budget.take_decode(1, make_table(*[0] * 4))


def test_without_output_rows_there_is_no_decode() -> None:
    budget = make_budget(decode_rows=2, prefill_tiles=1)
    budget.take_tiles(0, 4, outputs=3)

    assert not budget.take_decode(0, make_table(0))
    assert budget.take_decode(1, make_table(0))


def test_entries_are_taken_on_all_instances_or_none() -> None:
    budget = make_budget()

    assert not budget.take_entries(make_table(0, *[1] * 6))
    assert budget.entries == [5, 5]
    assert budget.take_entries(make_table(0, *[1] * 5))
    assert budget.entries == [4, 0]


def test_entries_can_be_given_back() -> None:
    budget = make_budget()
    table = make_table(0, 1, 1)
    assert budget.take_entries(table)
    budget.give_entries(table)

    assert budget.entries == [5, 5]


def test_blocks_that_left_the_window_need_no_entry() -> None:
    budget = make_budget()
    table = make_table(*[0] * 8)
    table.drop_before(16)

    assert budget.take_entries(table)
    assert budget.entries == [1, 5]


def test_a_span_takes_whole_tiles() -> None:
    budget = make_budget()
    budget.take_tiles(0, 5, outputs=1)

    assert budget.prefill_tiles == [1, 3]
    assert budget.output_rows == [4, 5]
