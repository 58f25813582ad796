"""Every instance writes into its own blocks, every device its own heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distkv_jax.attention import write_kv
from pallas_kernels.kv_pool import KVPool
from tests.models.builders import make_mesh

BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM, TOKENS = 3, 4, 4, 2, 5


@pytest.mark.parametrize(("instances", "tensor"), [(1, 1), (8, 1), (2, 2), (1, 4)])
def test_sharded_writes_equal_writes_one_by_one(instances: int, tensor: int) -> None:
    rng = np.random.default_rng(0)
    pool_shape = (instances * BLOCKS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    pool = rng.normal(size=pool_shape).astype(np.float32)
    kv = rng.normal(size=(2, instances * TOKENS, KV_HEADS, HEAD_DIM)).astype(np.float32)
    places = [rng.permutation(BLOCKS * BLOCK_SIZE)[:TOKENS] for _ in range(instances)]
    blocks, slots = np.divmod(np.concatenate(places).astype(np.int32), BLOCK_SIZE)
    blocks[1::TOKENS] = BLOCKS  # one token of each instance is padding
    expected = pool.copy()
    for token, (block, slot) in enumerate(zip(blocks, slots, strict=True)):
        if block < BLOCKS:
            expected[token // TOKENS * BLOCKS + block, :, :, slot] = kv[:, token]

    write = jax.shard_map(
        write_kv,
        mesh=make_mesh(instances, tensor),
        in_specs=P("instance"),
        out_specs=P("instance"),
        axis_names={"instance"},
        check_vma=False,
    )
    written = jax.jit(write)(KVPool(jnp.asarray(pool)), *kv, blocks, slots)

    np.testing.assert_array_equal(written.data, expected)
