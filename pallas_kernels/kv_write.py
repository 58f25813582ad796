"""Writing new keys and values into the blocks of a pool."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool, quantise


def kv_write(
    pool: KVPool,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    blocks: Int[Array, " tokens"],
    slots: Int[Array, " tokens"],
) -> KVPool:
    """Write each token's K and V into its slot, quantised if the pool is.

    Donate the pool, the result replaces it.

    Args:
        pool: K (0) and V (1) of every block of one layer.
        k: Keys, rotated.
        v: Values.
        blocks: Block of each token; one past the last block drops the token (padding).
        slots: Slot in that block, below block_size. No two tokens name the same slot.
    """
    new, scales = jnp.stack([k, v], axis=1), None
    if pool.scales is None:
        new = new.astype(pool.data.dtype)
    else:
        new, new_scales = quantise(new, pool.data.dtype)
        scales = pool.scales.at[blocks, :, :, slots].set(
            new_scales, mode="drop", unique_indices=True
        )
    data = pool.data.at[blocks, :, :, slots].set(new, mode="drop", unique_indices=True)
    return KVPool(data, scales)
