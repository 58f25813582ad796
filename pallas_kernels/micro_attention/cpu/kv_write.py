"""Writing new keys and values in place on CPUs: the call into the native library."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.cpu.build import is_loaded
from pallas_kernels.micro_attention.cpu.dtypes import ACTIVATIONS, POOLS, names


def kv_write_cpu(
    pool: KVPool,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    blocks: Int[Array, " tokens"],
    slots: Int[Array, " tokens"],
) -> KVPool:
    """Write what `pallas_kernels.kv_write` writes, and touch nothing else of the pool.

    XLA's scatter on CPUs widens a whole bfloat16 pool to float32 and back. Donate the pool, the
    result replaces it; it is copied otherwise.

    Args:
        pool: Float32, bfloat16, int8 or float8_e4m3fn.
        k: Keys, rotated, float32 or bfloat16.
        v: Values.
        blocks: Block of each token; one past the last block drops the token (padding).
        slots: Slot in that block, below block_size. No two tokens name the same slot.

    Raises:
        RuntimeError: `load` was not called, or could not build the kernels.
        TypeError: Another dtype.
    """
    if not is_loaded():
        raise RuntimeError("the native kv_write is not loaded: call cpu.load first")
    if k.dtype != v.dtype or k.dtype not in ACTIVATIONS or pool.data.dtype not in POOLS:
        raise TypeError(
            f"k is {k.dtype}, v is {v.dtype}, pool is {pool.data.dtype}, expected k and v "
            f"both one of {names(ACTIVATIONS)}, pool one of {names(POOLS)}"
        )
    old_scales = jnp.zeros(0, jnp.float32) if pool.scales is None else pool.scales
    call = jax.ffi.ffi_call(
        "distkv_kv_write",
        (
            jax.ShapeDtypeStruct(pool.data.shape, pool.data.dtype),
            jax.ShapeDtypeStruct(old_scales.shape, old_scales.dtype),
        ),
        input_output_aliases={0: 0, 1: 1},
    )
    data, scales = call(pool.data, old_scales, k, v, blocks, slots)
    return KVPool(data, None if pool.scales is None else scales)
