"""The programs that copy blocks out of the pools and into them, for all layers."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from distkv_jax.attention import read_blocks, write_blocks
from distkv_jax.engine.step import Pools


def make_read(mesh: Mesh) -> Callable[[Pools, Int[Array, "instances lanes"]], Pools]:
    """Build the function that copies some blocks of each instance out of its pools."""

    def instance_read(pools: Pools, blocks: Int[Array, "1 lanes"]) -> Pools:
        return tuple(read_blocks(pool, blocks[0]) for pool in pools)

    return jax.shard_map(
        instance_read,
        mesh=mesh,
        in_specs=P("instance"),
        out_specs=P("instance"),
        axis_names={"instance"},
        check_vma=False,
    )


def make_write(mesh: Mesh) -> Callable[[Pools, Pools, Int[Array, "instances lanes"]], Pools]:
    """Build the function that copies some blocks into each instance's pools.

    Jit it with the pools, its first argument, donated.
    """

    def instance_write(pools: Pools, new: Pools, blocks: Int[Array, "1 lanes"]) -> Pools:
        pairs = zip(pools, new, strict=True)
        return tuple(write_blocks(pool, coming, blocks[0]) for pool, coming in pairs)

    return jax.shard_map(
        instance_write,
        mesh=mesh,
        in_specs=P("instance"),
        out_specs=P("instance"),
        axis_names={"instance"},
        check_vma=False,
    )
