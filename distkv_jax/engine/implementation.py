"""Which MicroAttention implementation runs a model on a mesh."""

import jax
import numpy as np
from jax.sharding import Mesh

from distkv_jax.attention import AttentionCall, choose_implementation
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.engine.shapes import shape_table
from distkv_jax.environment import cache_folder
from distkv_jax.mesh import INSTANCE, TENSOR
from distkv_jax.models.config import ModelConfig
from pallas_kernels.kv_pool import empty_pool, query_dtype
from pallas_kernels.micro_attention import Row


def implementation_for(
    model: ModelConfig, engine: EngineConfig, pool: PoolSpec, mesh: Mesh, *, weights: np.dtype
) -> str:
    """Choose by the largest calls that steps will make: tiles of one token, and of a prompt's.

    Raises:
        ConfigError: The implementation that `engine` asks for cannot run them.
    """
    instances, tensor = mesh.shape[INSTANCE], mesh.shape[TENSOR]
    largest = shape_table(engine, instances, pool.num_blocks).shapes[-1]
    # Every instance may have to attend for the spanning tiles of all.
    tiles = {1: instances * largest.output_rows, engine.tile: instances * largest.prefill_tiles}
    return choose_implementation(
        engine.micro_attention,
        device=mesh.local_devices[0],
        calls=[
            attention_call(model, pool, weights, tile=tile, tiles=count, tensor=tensor)
            for tile, count in tiles.items()
        ],
        cache_folder=cache_folder() / "kernels",
    )


def attention_call(
    model: ModelConfig, pool: PoolSpec, weights: np.dtype, *, tile: int, tiles: int, tensor: int
) -> AttentionCall:
    """The shapes of a call with a row for each tile, on one device of `tensor`."""
    local = pool._replace(kv_heads=pool.kv_heads // tensor)
    entries = jax.ShapeDtypeStruct((2 * pool.num_blocks,), np.int32)
    return AttentionCall(
        q=jax.ShapeDtypeStruct(
            (tiles, tile, model.q_heads // tensor, model.head_dim), query_dtype(weights, pool.dtype)
        ),
        pool=jax.eval_shape(lambda: empty_pool(local.shape(1), pool.dtype)),
        block_ids=entries,
        block_starts=entries,
        rows=jax.ShapeDtypeStruct((tiles, len(Row)), np.int32),
    )
