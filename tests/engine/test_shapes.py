"""A step runs in the cheapest of few shapes that holds it."""

import itertools

import pytest

from distkv_jax.engine.shapes import PlanShape, ShapeTable


def make_table(
    *, decode_rows: int = 32, prefill_tiles: int = 8, instances: int = 4, pooling: bool = True
) -> ShapeTable:
    return ShapeTable(
        max_decode_rows=decode_rows,
        max_prefill_tiles=prefill_tiles,
        tile=16,
        entries=100,
        instances=instances,
        pooling=pooling,
    )


def size(shape: PlanShape) -> tuple[int, int, bool]:
    return shape.decode_rows, shape.prefill_tiles, shape.spanning


def test_there_are_few_shapes() -> None:
    assert [size(shape) for shape in make_table().shapes] == [
        (8, 0, False),
        (8, 0, True),
        (8, 2, False),
        (8, 2, True),
        (32, 0, False),
        (32, 0, True),
        (32, 8, False),
        (32, 8, True),
    ]


@pytest.mark.parametrize(("instances", "pooling"), [(1, True), (4, False)])
def test_where_nothing_can_span_no_shape_does(instances: int, pooling: bool) -> None:
    table = make_table(instances=instances, pooling=pooling)

    assert len(table.shapes) == 4
    assert not any(shape.spanning for shape in table.shapes)


def test_a_small_engine_has_only_the_shapes_it_needs() -> None:
    table = make_table(decode_rows=4, prefill_tiles=2, instances=1)

    assert [size(shape) for shape in table.shapes] == [(4, 0, False), (4, 2, False)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((0, 0, 0, False), (8, 0, False)),
        ((8, 0, 8, False), (8, 0, False)),
        ((9, 0, 9, False), (32, 0, False)),
        ((1, 0, 1, True), (8, 0, True)),
        ((1, 2, 3, False), (8, 2, False)),
        ((1, 3, 4, False), (32, 8, False)),
        ((9, 1, 10, True), (32, 8, True)),
        # Many prompt positions to be scored: more output rows than tiles.
        ((0, 1, 11, False), (32, 0 + 8, False)),
    ],
)
def test_the_smallest_shape_that_holds_a_step_is_chosen(
    asked: tuple[int, int, int, bool], expected: tuple[int, int, bool]
) -> None:
    decode_rows, prefill_tiles, output_rows, spanning = asked
    shape = make_table().smallest(
        decode_rows=decode_rows,
        prefill_tiles=prefill_tiles,
        output_rows=output_rows,
        spanning=spanning,
    )

    assert size(shape) == expected


def test_every_step_within_the_budget_has_a_shape() -> None:
    table = make_table(decode_rows=10, prefill_tiles=3)

    for decode_rows, prefill_tiles, spanning in itertools.product(
        range(11), range(4), (False, True)
    ):
        shape = table.smallest(
            decode_rows=decode_rows,
            prefill_tiles=prefill_tiles,
            output_rows=table.max_output_rows,
            spanning=spanning,
        )
        assert shape.decode_rows >= decode_rows
        assert shape.prefill_tiles >= prefill_tiles
        assert shape.spanning or not spanning


def test_a_shapes_counts_follow_from_its_rows() -> None:
    shape = make_table().shapes[-1]

    assert shape.tokens == 32 + 8 * 16
    assert shape.output_rows == 32 + 8
    assert shape.spanning_rows(32) == 32
    assert make_table().shapes[-2].spanning_rows(32) == 0
    assert str(shape) == "decode 32, prefill 8×16, spanning"
