"""Pools are updated in place, a step needs less than one layer's pool, and sizes add up."""

import types

import jax
import pytest

from distkv_jax.engine.memory import MemoryUse, blocks_that_fit
from distkv_jax.engine.shapes import PlanShape
from distkv_jax.engine.step import Pools
from distkv_jax.errors import ConfigError
from tests.engine.builders import CONFIG, make_runner

# 2048 blocks of 16 tokens: 32k tokens, 2 MiB in each of three layers of this small model.
NUM_BLOCKS, BLOCK_SIZE = 2048, 16


def make_shape(instances: int) -> PlanShape:
    return PlanShape(
        decode_rows=4, prefill_tiles=0, spanning=False, tile=8, entries=32, instances=instances
    )


@pytest.mark.parametrize(
    ("instance", "tensor", "is_spanning"), [(1, 1, False), (2, 1, True), (2, 2, True)]
)
def test_pools_are_aliased_and_temporaries_smaller_than_one_layers_pool(
    instance: int, tensor: int, is_spanning: bool
) -> None:
    runner = make_runner(instance, tensor, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    shape = PlanShape(
        decode_rows=8,
        prefill_tiles=2,
        spanning=is_spanning,
        tile=64,
        entries=2 * NUM_BLOCKS,
        instances=instance,
    )

    memory = runner.program(shape).memory_analysis()
    assert memory is not None

    block_bytes = runner.pool.block_bytes // tensor
    assert memory.alias_size_in_bytes >= NUM_BLOCKS * block_bytes
    assert memory.temp_size_in_bytes < NUM_BLOCKS * block_bytes // CONFIG.num_layers
    assert runner.temporary_bytes(shape) == memory.temp_size_in_bytes


def test_a_backend_that_cannot_say_what_a_step_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = make_runner()
    silent = types.SimpleNamespace(memory_analysis=lambda: None)
    monkeypatch.setattr(runner, "program", lambda shape: silent)

    with pytest.raises(
        ConfigError, match="this backend does not say what a step needs, num_blocks must be given"
    ):
        runner.temporary_bytes(make_shape(1))


def test_a_step_leaves_the_pools_where_they_were() -> None:
    runner = make_runner(2)
    shape = make_shape(2)
    runner.warm_up([shape])
    before = addresses(runner._pools)
    runner.warm_up([shape])

    assert addresses(runner._pools) == before


def addresses(pools: Pools) -> list[int]:
    leaves = jax.tree.leaves(pools)
    return [s.data.unsafe_buffer_pointer() for leaf in leaves for s in leaf.addressable_shards]


def test_a_pool_takes_what_everything_else_leaves() -> None:
    memory = MemoryUse(limit=1000, fraction=0.9, weights=300, state=50, temporaries=150, block=100)

    assert blocks_that_fit(memory) == 4
    assert blocks_that_fit(memory._replace(temporaries=149)) == 4
    assert blocks_that_fit(memory._replace(temporaries=150 + 1)) == 3
    assert blocks_that_fit(memory._replace(temporaries=450)) == 1


def test_blocks_on_their_way_to_host_memory_need_room_too() -> None:
    memory = MemoryUse(limit=1000, fraction=0.9, weights=300, state=50, temporaries=150, block=100)

    assert blocks_that_fit(memory._replace(num_staged=3)) == 1
    with pytest.raises(ConfigError, match=r"− temporaries 150 − staged 400 = 0"):
        blocks_that_fit(memory._replace(num_staged=4))


def test_no_room_for_a_block_says_what_takes_how_much() -> None:
    memory = MemoryUse(
        limit=10_000, fraction=0.9, weights=8_000, state=500, temporaries=450, block=100
    )

    with pytest.raises(
        ConfigError,
        match=r"no KV block of 100 bytes fits: device memory 10,000 bytes × 0\.9 − weights 8,000 "
        r"− sampler 500 − temporaries 450 = 50",
    ):
        blocks_that_fit(memory)
