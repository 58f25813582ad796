"""What the host writes into a plan's buffer is what the device reads out of it, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.engine.plan import (
    FLOATS,
    PlanArrays,
    buffer_size,
    device_views,
    empty_buffer,
    host_views,
    sizes,
)
from distkv_jax.engine.shapes import PlanShape
from pallas_kernels.micro_attention import Row

NUM_BLOCKS, NUM_SLOTS = 13, 7


def make_shape(
    *, decode_rows: int = 3, prefill_tiles: int = 2, spanning: bool = True, instances: int = 2
) -> PlanShape:
    return PlanShape(
        decode_rows=decode_rows,
        prefill_tiles=prefill_tiles,
        spanning=spanning,
        tile=4,
        entries=6,
        instances=instances,
    )


SHAPES = [
    make_shape(),
    make_shape(spanning=False),
    make_shape(prefill_tiles=0),
    make_shape(instances=1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_array_comes_back_as_it_was_written(shape: PlanShape) -> None:
    rng = np.random.default_rng(0)
    buffer = np.zeros((shape.instances, buffer_size(shape)), np.int32)
    views = host_views(buffer, shape)
    for name, view in views.items():
        if name in FLOATS:
            view[...] = rng.normal(size=view.shape)
        else:
            view[...] = rng.integers(-(2**31), 2**31, size=view.shape)

    for instance in range(shape.instances):
        found = jax.jit(device_views, static_argnums=1)(jnp.asarray(buffer[instance]), shape)
        for name in PlanArrays._fields:
            array = getattr(found, name)
            assert array.dtype == (jnp.float32 if name in FLOATS else jnp.int32)
            np.testing.assert_array_equal(array, views[name][instance])


def test_floats_travel_bit_for_bit() -> None:
    shape = make_shape()
    bits = np.array([1, 2**31 - 1, -(2**31), 0x7FC00001, 0x3F800001], np.int32)  # NaN, denormals
    buffer = np.zeros((shape.instances, buffer_size(shape)), np.int32)
    host_views(buffer, shape)["temperature"][1] = bits.view(np.float32)

    found = device_views(jnp.asarray(buffer[1]), shape).temperature

    np.testing.assert_array_equal(np.asarray(found).view(np.int32), bits)


def test_views_cover_the_buffer_without_overlap() -> None:
    shape = make_shape()
    buffer = np.zeros((shape.instances, buffer_size(shape)), np.int32)
    for view in host_views(buffer, shape).values():
        view.view(np.int32)[...] += 1

    np.testing.assert_array_equal(buffer, 1)


def test_a_plan_grows_with_blocks_and_tokens_only() -> None:
    small = sizes(make_shape(decode_rows=8))
    large = sizes(make_shape(decode_rows=16))

    # Rows, spanning tiles, and for each instance the others' spanning tiles: nothing is squared.
    assert small["decode_own"] == (8, len(Row))
    assert small["decode_spanning"] == (8,)
    assert small["decode_foreign"] == (2 * 8, len(Row))
    assert large["decode_foreign"] == (2 * 16, len(Row))
    assert small["block_ids"] == large["block_ids"] == (6,)
    assert small["tokens"] == (8 + 2 * 4,)


def test_a_shape_that_does_not_span_has_no_rows_for_it() -> None:
    found = sizes(make_shape(spanning=False))

    for name in ("decode", "prefill", "output"):
        assert found[f"{name}_spanning"] == (0,)
        assert found[f"{name}_foreign"] == (0, len(Row))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_an_empty_plan_nothing_runs(shape: PlanShape) -> None:
    views = host_views(empty_buffer(shape, num_blocks=NUM_BLOCKS, num_slots=NUM_SLOTS), shape)

    assert (views["blocks"] == NUM_BLOCKS).all()
    assert (views["slot"] == NUM_SLOTS).all()
    assert (views["decode_slots"] == NUM_SLOTS).all()
    assert (views["target"] == -1).all()
    assert (views["top_p"] == 1).all() and (views["repetition_penalty"] == 1).all()
    for name, tiles in (
        ("decode", shape.decode_rows),
        ("prefill", shape.prefill_tiles),
        ("output", shape.output_rows),
    ):
        assert (views[f"{name}_own"][..., Row.COUNT] == 0).all()
        assert (views[f"{name}_foreign"][..., Row.COUNT] == 0).all()
        assert (views[f"{name}_spanning"] == tiles).all()
