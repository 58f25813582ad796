"""MicroAttention in C++ for CPUs, called through XLA's foreign function interface."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.cpu.build import TARGET, is_loaded, load
from pallas_kernels.micro_attention.partial import Partial

DTYPES = (jnp.float32, jnp.bfloat16)


def micro_attention_cpu(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Partial:
    """Attend from every row's tile to its blocks on XLA's thread pool; see `contract`.

    Float32 or bfloat16, the same for queries and pool.

    Raises:
        RuntimeError: `load` was not called, or could not build the kernel.
        TypeError: Another dtype.
    """
    if not is_loaded():
        raise RuntimeError("implementation 'cpu' is not loaded: call cpu.load first")
    if q.dtype != pool.data.dtype or q.dtype not in DTYPES:
        raise TypeError(
            f"q is {q.dtype}, pool is {pool.data.dtype}, expected both float32 or bfloat16"
        )
    tiles, tile, q_heads, _ = q.shape
    call = jax.ffi.ffi_call(
        TARGET,
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((tiles, tile, q_heads), jnp.float32),
        ),
    )
    out, lse = call(
        q,
        pool.data,
        block_ids,
        block_starts,
        rows,
        scale=np.float32(scale),
        window=np.int64(0 if window is None else window),
        soft_cap=np.float32(0 if soft_cap is None else soft_cap),
    )
    return Partial(out, lse)


__all__ = ["DTYPES", "is_loaded", "load", "micro_attention_cpu"]
