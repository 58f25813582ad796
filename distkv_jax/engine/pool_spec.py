"""What the pools of a model are made of: sizes, and the dtype of keys and values."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from distkv_jax.engine.config import EngineConfig
from distkv_jax.models.config import ModelConfig
from pallas_kernels.kv_pool import SCALE_BYTES, is_quantised

FP8 = jnp.float8_e4m3fn
"""What `fp8` means: four bits of exponent, three of mantissa, no infinity."""


class PoolSpec(NamedTuple):
    """Size of the pools.

    Attributes:
        num_layers: Layers, one pool each.
        num_blocks: Blocks of each instance.
        kv_heads: KV heads, over all devices of an instance.
        block_size: Tokens of a block.
        head_dim: Width of a head.
        dtype: Of keys and values as stored.
    """

    num_layers: int
    num_blocks: int
    kv_heads: int
    block_size: int
    head_dim: int
    dtype: np.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers and heads, scales included."""
        vectors = self.num_layers * 2 * self.kv_heads * self.block_size
        scale = SCALE_BYTES if is_quantised(self.dtype) else 0
        return vectors * (self.head_dim * self.dtype.itemsize + scale)

    def shape(self, instances: int) -> tuple[int, ...]:
        """Shape of one layer's data over the whole mesh."""
        return (instances * self.num_blocks, 2, self.kv_heads, self.block_size, self.head_dim)


def pool_spec(
    model: ModelConfig, engine: EngineConfig, *, weights: np.dtype, platform: str, num_blocks: int
) -> PoolSpec:
    """Size the pools of a model.

    Args:
        model: As the mesh runs it: KV heads replicated where `tensor` exceeds them.
        engine: Block size, and the dtype asked for.
        weights: Dtype of the weights.
        platform: "cpu", "gpu" or "tpu".
        num_blocks: Blocks of each instance.
    """
    return PoolSpec(
        num_layers=model.num_layers,
        num_blocks=num_blocks,
        kv_heads=model.kv_heads,
        block_size=engine.block_size,
        head_dim=model.head_dim,
        dtype=kv_dtype(engine, weights, platform),
    )


def kv_dtype(engine: EngineConfig, weights: np.dtype, platform: str) -> np.dtype:
    """Choose the dtype of keys and values.

    On CPU `auto` is float32 also for narrower weights: the fallback without a native kernel widens
    a whole bfloat16 pool at every write.
    """
    if engine.kv_cache_dtype == "fp8":
        return np.dtype(FP8)
    if engine.kv_cache_dtype != "auto":
        return np.dtype(jnp.dtype(engine.kv_cache_dtype))
    return np.dtype(np.float32) if platform == "cpu" else weights
