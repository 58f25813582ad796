"""Blocks move as if all at once: anywhere, in circles, with every pool full, scales included."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from distkv_jax.cache.block import Place
from distkv_jax.engine.moves import Copy, Round, make_move, to_rounds
from distkv_jax.errors import InvariantError
from pallas_kernels.kv_pool import KVPool
from tests.models.builders import make_mesh

NUM_BLOCKS, LANES = 6, 2


@st.composite
def permutations(draw: st.DrawFn, num_instances: int) -> list[Copy]:
    """Copies between full pools: chains and circles of every length."""
    places = [Place(i, block) for i in range(num_instances) for block in range(NUM_BLOCKS)]
    sources = draw(st.lists(st.sampled_from(places), unique=True, max_size=20))
    targets = draw(st.permutations(places))
    return [
        Copy(source, target)
        for source, target in zip(sources, targets, strict=False)
        if source.instance != target.instance
    ]


def expected(numbers: np.ndarray, copies: list[Copy]) -> np.ndarray:
    """Read everything, then write everything."""
    result = numbers.copy()
    for source, destination in copies:
        result[destination] = numbers[source]
    return result


def by_hand(numbers: np.ndarray, rounds: list[Round]) -> np.ndarray:
    """Run rounds as the device does."""
    for send, receive in rounds:
        before = numbers.copy()
        for source, to, lane in np.ndindex(send.shape):
            target = receive[to, source, lane]
            if target < NUM_BLOCKS:
                numbers[to, target] = before[source, send[source, to, lane]]
    return numbers


@settings(deadline=None)
@given(st.data())
def test_rounds_do_what_all_copies_at_once_would(data: st.DataObject) -> None:
    copies = data.draw(permutations(3))
    # Circles may cross a pair of instances often; the planner's never cross one twice.
    lanes = data.draw(st.integers(len(copies), len(copies) + 1)) or 1
    numbers = np.arange(3 * NUM_BLOCKS).reshape(3, NUM_BLOCKS)

    rounds = to_rounds(copies, num_instances=3, num_blocks=NUM_BLOCKS, lanes=lanes)

    np.testing.assert_array_equal(by_hand(numbers.copy(), rounds), expected(numbers, copies))


def test_what_does_not_fit_a_round_goes_into_the_next() -> None:
    copies = [Copy(Place(0, block), Place(1, block)) for block in range(5)]

    rounds = to_rounds(copies, num_instances=2, num_blocks=NUM_BLOCKS, lanes=LANES)

    assert [int((receive < NUM_BLOCKS).sum()) for _, receive in rounds] == [2, 2, 1]


def test_a_chain_longer_than_a_round_is_written_from_its_end() -> None:
    # Block 0 of instance 0 goes where 1 of instance 1 leaves for 2 of instance 0, and so on.
    copies = [Copy(Place(i % 2, i), Place((i + 1) % 2, i + 1)) for i in range(5)]
    numbers = np.arange(2 * NUM_BLOCKS).reshape(2, NUM_BLOCKS)

    rounds = to_rounds(copies, num_instances=2, num_blocks=NUM_BLOCKS, lanes=1)

    assert len(rounds) > 1
    np.testing.assert_array_equal(by_hand(numbers.copy(), rounds), expected(numbers, copies))


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ([Copy(Place(0, 1), Place(1, 1)), Copy(Place(0, 1), Place(1, 2))], "name a source twice"),
        ([Copy(Place(0, 1), Place(1, 1)), Copy(Place(0, 2), Place(1, 1))], "destination twice"),
        ([Copy(Place(0, 1), Place(0, 2))], "stays on its instance"),
    ],
)
def test_what_cannot_be_at_once_is_refused(copies: list[Copy], message: str) -> None:
    with pytest.raises(InvariantError, match=message):
        to_rounds(copies, num_instances=2, num_blocks=NUM_BLOCKS, lanes=LANES)


@functools.cache
def program(instance: int, tensor: int) -> Any:
    return jax.jit(make_move(make_mesh(instance, tensor)), donate_argnums=0)


@pytest.mark.parametrize(("instance", "tensor"), [(2, 1), (8, 1), (2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int8])
def test_devices_move_every_layer_with_its_scales(instance: int, tensor: int, dtype: Any) -> None:
    mesh = make_mesh(instance, tensor)
    rng = np.random.default_rng(0)
    shape = (instance * NUM_BLOCKS, 2, 2, 4, 3)
    layers = [rng.integers(-100, 100, shape).astype(dtype) for _ in range(2)]
    scales = [rng.normal(size=shape[:-1]).astype(np.float32) for _ in layers]
    put = functools.partial(
        jax.device_put, device=NamedSharding(mesh, P("instance", None, "tensor"))
    )
    pools = tuple(
        KVPool(put(data), put(scale) if dtype == np.int8 else None)
        for data, scale in zip(layers, scales, strict=True)
    )
    # A circle through all instances, an exchange, and a block that goes its way.
    copies = [Copy(Place(i, 0), Place((i + 1) % instance, 0)) for i in range(instance)]
    copies += [Copy(Place(0, 1), Place(1, 1)), Copy(Place(1, 1), Place(0, 1))]
    copies += [Copy(Place(1, 5), Place(0, 4))]
    rounds = to_rounds(copies, num_instances=instance, num_blocks=NUM_BLOCKS, lanes=LANES)

    for send, receive in rounds:
        pools = program(instance, tensor)(pools, send, receive)

    for pool, data, scale in zip(pools, layers, scales, strict=True):
        by_place = data.reshape(instance, NUM_BLOCKS, *shape[1:])
        moved = expected(by_place, copies).reshape(shape)
        np.testing.assert_array_equal(np.asarray(pool.data, np.float32), moved.astype(np.float32))
        if pool.scales is not None:
            by_place = scale.reshape(instance, NUM_BLOCKS, *shape[1:-1])
            np.testing.assert_array_equal(
                pool.scales, expected(by_place, copies).reshape(shape[:-1])
            )
