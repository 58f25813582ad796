"""Blocks come back from host memory bit for bit: any dtype, scales included, any number at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.cache.messages import Heartbeat, NotSaved, Saved
from distkv_jax.engine.commands import NOT_WANTED, Fetch, Forget, Save
from distkv_jax.engine.host_memory import LANES, MAX_AHEAD, HostMemory
from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.engine.step import Pools
from distkv_jax.errors import InvariantError
from distkv_jax.mesh import INSTANCE, TENSOR, sharding
from pallas_kernels.kv_pool import KVPool, is_quantised
from tests.models.builders import make_mesh

NUM_BLOCKS = 2 * LANES * MAX_AHEAD + 3
"""Enough for copies to wait for each other."""


def spec_of(dtype: Any) -> PoolSpec:
    return PoolSpec(
        num_layers=2,
        num_blocks=NUM_BLOCKS,
        kv_heads=2,
        block_size=4,
        head_dim=3,
        dtype=np.dtype(dtype),
    )


@functools.cache
def mesh_of(instance: int, tensor: int) -> jax.sharding.Mesh:
    return make_mesh(instance, tensor)


class Host:
    """Pools full of random numbers, and the host memory behind them."""

    def __init__(
        self, instance: int = 2, tensor: int = 1, dtype: Any = np.float32, host_blocks: int = 100
    ) -> None:
        mesh, spec = mesh_of(instance, tensor), spec_of(dtype)
        self.memory = HostMemory(mesh, spec, host_blocks)
        rng = np.random.default_rng(0)
        where = sharding(mesh, INSTANCE, None, TENSOR)

        def random(shape: tuple[int, ...], kind: np.dtype) -> jax.Array:
            return jax.device_put((100 * rng.normal(size=shape)).astype(kind), where)

        shape = spec.shape(instance)
        self.pools: Pools = tuple(
            KVPool(
                random(shape, spec.dtype),
                random(shape[:-1], np.dtype(np.float32)) if is_quantised(spec.dtype) else None,
            )
            for _ in range(spec.num_layers)
        )
        self.instances = instance

    def run(self, command: Save | Fetch | Forget) -> None:
        self.pools = self.memory.execute(command, self.pools)

    def bits(self) -> list[np.ndarray]:
        """Every array by instance and block, as bytes."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.pools)]
        return [
            leaf.reshape(self.instances, NUM_BLOCKS, -1).view(np.uint8).copy() for leaf in leaves
        ]

    def answers(self) -> list[Saved | NotSaved]:
        return [one for one in self.memory.hear() if not isinstance(one, Heartbeat)]


@pytest.mark.parametrize(("instance", "tensor"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int8, jnp.float8_e4m3fn])
def test_blocks_come_back_as_they_were_and_nothing_else_changes(
    instance: int, tensor: int, dtype: Any
) -> None:
    host = Host(instance, tensor, dtype)
    rng = np.random.default_rng(1)
    # Another number on each instance; the first more than may be on its way at once.
    counts = [NUM_BLOCKS - 2, 5][:instance]
    sources = [rng.permutation(NUM_BLOCKS)[:count].tolist() for count in counts]
    targets = [rng.permutation(NUM_BLOCKS)[:count].tolist() for count in counts]
    targets[0][3] = NOT_WANTED
    expected = host.bits()

    host.run(Save(1, 7, "a", 0, tuple(map(tuple, sources))))
    host.run(Fetch(2, 7, tuple(map(tuple, targets))))

    for leaf in expected:
        before = leaf.copy()
        for at in range(instance):
            for source, target in zip(sources[at], targets[at], strict=True):
                if target != NOT_WANTED:
                    leaf[at, target] = before[at, source]
    for found, wanted in zip(host.bits(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not any(pool.saves for pool in host.memory.pools.values())


def test_what_was_saved_survives_what_is_written_afterwards() -> None:
    host = Host()
    expected = host.bits()
    host.run(Save(1, 1, "a", 0, ((0, 1, 2), ())))
    host.run(Save(2, 2, "b", 0, ((3,), (0,))))

    # Into the blocks that were saved first.
    host.run(Fetch(3, 2, ((0,), (1,))))
    host.run(Fetch(4, 1, ((4, 5, 6), ())))

    for found, before in zip(host.bits(), expected, strict=True):
        np.testing.assert_array_equal(found[0, 4:7], before[0, :3])
        np.testing.assert_array_equal(found[0, 0], before[0, 3])


def test_host_blocks_that_change_hands_while_a_copy_is_on_its_way_are_the_last_ones() -> None:
    host = Host(host_blocks=2)
    expected = host.bits()
    host.run(Save(1, 1, "a", 0, ((0, 1), ())))
    host.run(Forget(2, 1))
    host.run(Save(3, 2, "b", 0, ((2, 3), ())))
    host.run(Fetch(4, 2, ((4, 5), ())))

    for found, before in zip(host.bits(), expected, strict=True):
        np.testing.assert_array_equal(found[0, 4:6], before[0, 2:4])


def test_each_instance_answers_for_itself_and_a_full_one_keeps_nothing() -> None:
    host = Host(host_blocks=3)
    host.run(Save(1, 1, "a", 0, ((0, 1), ())))
    host.run(Save(2, 2, "b", 0, ((3, 4), (5, 6))))

    assert host.answers() == [
        Saved(instance=0, save_id=1),
        NotSaved(instance=0, save_id=2, num_free=1),
        Saved(instance=1, save_id=2),
    ]
    assert host.memory.pools[0].blocks(2) == ()
    with pytest.raises(InvariantError, match="2 blocks of save 2 shall be fetched to instance 0"):
        host.run(Fetch(3, 2, ((0, 1), ())))


def test_every_change_is_a_heartbeat() -> None:
    host = Host(host_blocks=3)

    def free() -> list[int]:
        beats = [one for one in host.memory.hear() if isinstance(one, Heartbeat)]
        assert all(one.is_full for one in beats)
        return [one.num_free for one in sorted(beats, key=lambda one: one.instance)]

    assert free() == [3, 3]
    host.run(Save(1, 1, "a", 0, ((0, 1), (0,))))
    assert free() == [1, 2]
    host.run(Forget(2, 1))
    assert free() == [3, 3]
    host.run(Save(3, 2, "a", 0, ((0,), ())))
    assert free() == [2]
    host.memory.forget_all()
    assert free() == [3]
    assert free() == []


def test_the_commands_that_warm_up_leave_everything_as_it_was() -> None:
    host = Host(host_blocks=1)
    expected = host.bits()

    for command in host.memory.warm_up():
        host.run(command)

    for found, before in zip(host.bits(), expected, strict=True):
        np.testing.assert_array_equal(found, before)
    assert not any(pool.saves for pool in host.memory.pools.values())
