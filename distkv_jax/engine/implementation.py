"""Which MicroAttention implementation runs a model on a mesh."""

import jax
import numpy as np
from jax.sharding import Mesh

from distkv_jax.attention import AttentionCall, choose_implementation
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.environment import cache_folder
from distkv_jax.mesh import TENSOR
from distkv_jax.models.config import ModelConfig
from pallas_kernels.kv_pool import empty_pool, query_dtype
from pallas_kernels.micro_attention import Row


def implementation_for(
    model: ModelConfig, engine: EngineConfig, pool: PoolSpec, mesh: Mesh, *, weights: np.dtype
) -> str:
    """Choose by the calls that the steps will make: tiles of one token, and of a prompt's.

    Raises:
        ConfigError: The implementation that `engine` asks for cannot run them.
    """
    return choose_implementation(
        engine.micro_attention,
        device=mesh.devices.flat[0],
        calls=[
            attention_call(model, pool, weights, tile=tile, tensor=mesh.shape[TENSOR])
            for tile in (1, engine.tile)
        ],
        cache_folder=cache_folder() / "kernels",
    )


def attention_call(
    model: ModelConfig, pool: PoolSpec, weights: np.dtype, *, tile: int, tensor: int
) -> AttentionCall:
    """The shapes of a call with one tile, on one of the `tensor` devices of an instance."""
    local = pool._replace(kv_heads=pool.kv_heads // tensor)
    entries = jax.ShapeDtypeStruct((2 * pool.num_blocks,), np.int32)
    return AttentionCall(
        q=jax.ShapeDtypeStruct(
            (1, tile, model.q_heads // tensor, model.head_dim), query_dtype(weights, pool.dtype)
        ),
        pool=jax.eval_shape(lambda: empty_pool(local.shape(1), pool.dtype)),
        block_ids=entries,
        block_starts=entries,
        rows=jax.ShapeDtypeStruct((1, len(Row)), np.int32),
    )
