"""Writing new keys and values into the blocks of a pool."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def kv_write(
    pool: Float[Array, "blocks 2 kv_heads block_size head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    blocks: Int[Array, " tokens"],
    slots: Int[Array, " tokens"],
) -> Float[Array, "blocks 2 kv_heads block_size head_dim"]:
    """Write each token's K and V into its slot. Donate the pool, the result replaces it.

    Args:
        pool: K (0) and V (1) of every block of one layer.
        k: Keys, rotated.
        v: Values.
        blocks: Block of each token; one past the last block drops the token (padding).
        slots: Slot in that block, below block_size. No two tokens name the same slot.
    """
    new = jnp.stack([k, v], axis=1).astype(pool.dtype)
    return pool.at[blocks, :, :, slots].set(new, mode="drop", unique_indices=True)
