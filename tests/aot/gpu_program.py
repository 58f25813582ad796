"""Compile one call of the GPU kernel for an H100 that need not be there."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.kv_pool import KVPool, is_quantised
from pallas_kernels.micro_attention import micro_attention

TILES = 16
NUM_BLOCKS = 4096
HEAD_DIM = 128


def main(tile: int, q_heads: int, kv_heads: int, block_size: int, dtype: str, options: str) -> None:
    """Compile; the assembler prints what `MOSAIC_GPU_DUMP_PTXAS` asks for."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=(Path(__file__).parent / "h100.txtpb").read_text(),
        topology="1x1x1",
    )
    there = SingleDeviceSharding(topology.devices[0])

    def array(shape: tuple[int, ...], dtype: np.dtype | type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=there)

    kv_dtype = jnp.dtype(dtype)
    shape = (NUM_BLOCKS, 2, kv_heads, block_size, HEAD_DIM)
    scales = array(shape[:-1], jnp.float32) if is_quantised(kv_dtype) else None
    pool = KVPool(array(shape, kv_dtype), scales)  # pyright: ignore[reportArgumentType] (shapes)
    lists = array((2 * NUM_BLOCKS,), jnp.int32)

    def call(*arrays: jax.Array) -> jax.Array:
        return micro_attention(
            *arrays,  # pyright: ignore[reportArgumentType] (a pool among them)
            scale=HEAD_DIM**-0.5,
            window=4096 if options else None,
            soft_cap=50.0 if options else None,
            implementation="gpu",
        ).out

    q = array((TILES, tile, q_heads, HEAD_DIM), jnp.bfloat16)
    jax.jit(call).lower(q, pool, lists, lists, array((TILES, 5), jnp.int32)).compile()


if __name__ == "__main__":
    tile, q_heads, kv_heads, block_size = map(int, sys.argv[1:5])
    main(tile, q_heads, kv_heads, block_size, *sys.argv[5:])
