"""Blocks on their way between a pool and host memory, some lanes at a time.

Every instance runs the same program whether or not it has something to copy: lanes without a block
read any and write none.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from distkv_jax.attention.move import write_part
from pallas_kernels.kv_pool import KVPool

HEADS = P(None, None, "tensor")


def read_blocks(pool: KVPool, blocks: Int[Array, " lanes"]) -> KVPool:
    """Copy blocks of one layer out of the pool.

    Runs inside a `shard_map` that is manual over `instance`; every array is one instance's part.

    Args:
        pool: Keys and values of one layer.
        blocks: Which; any index where nothing is wanted.

    Returns:
        A pool of as many blocks, in their order.
    """

    def island(pool: KVPool, blocks: Array) -> KVPool:
        return jax.tree.map(lambda part: jnp.take(part, blocks, axis=0, mode="clip"), pool)

    with jax.named_scope("read_blocks"):
        return jax.shard_map(
            island, in_specs=(HEADS, P()), out_specs=HEADS, axis_names={"tensor"}, check_vma=False
        )(pool, blocks)


def write_blocks(pool: KVPool, new: KVPool, blocks: Int[Array, " lanes"]) -> KVPool:
    """Copy blocks of one layer into the pool. Donate the pool, the result replaces it.

    Runs inside a `shard_map` as `read_blocks` does.

    Args:
        pool: Keys and values of one layer.
        new: What `read_blocks` gave.
        blocks: Where each goes; one past the last block drops it. No block is named twice.
    """

    def island(pool: KVPool, new: KVPool, blocks: Array) -> KVPool:
        return jax.tree.map(lambda part, coming: write_part(part, coming, blocks), pool, new)

    with jax.named_scope("write_blocks"):
        return jax.shard_map(
            island,
            in_specs=(HEADS, HEADS, P()),
            out_specs=HEADS,
            axis_names={"tensor"},
            check_vma=False,
        )(pool, new, blocks)
