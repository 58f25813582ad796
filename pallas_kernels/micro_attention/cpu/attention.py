"""MicroAttention on the CPU's vector units: the call into the native library."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.cpu.build import instruction_sets, is_loaded
from pallas_kernels.micro_attention.cpu.dtypes import ACTIVATIONS, POOLS, names, takes
from pallas_kernels.micro_attention.partial import Partial


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
    instruction_set: str | None = None,
) -> Partial:
    """Attend from every row's tile to its blocks on XLA's thread pool; see `contract`.

    Args:
        q: Queries, float32 or bfloat16.
        pool: Float32, bfloat16, int8 or float8_e4m3fn; float32 with float32 queries only.
        block_ids: See `contract`, as for the rest.
        block_starts: See `contract`.
        rows: See `contract`.
        scale: Factor on every score.
        window: Sliding window in tokens; None for none.
        soft_cap: Scores become soft_cap * tanh(score / soft_cap); None for none.
        instruction_set: One of `instruction_sets()`; None for the best.

    Raises:
        RuntimeError: `load` was not called, or could not build the kernel.
        TypeError: Another dtype.
        ValueError: The processor does not have the instruction set.
    """
    if not is_loaded():
        raise RuntimeError("implementation 'cpu' is not loaded: call cpu.load first")
    if not takes(q.dtype, pool.data.dtype):
        raise TypeError(
            f"q is {q.dtype}, pool is {pool.data.dtype}, expected q of {names(ACTIVATIONS)}, "
            f"at least as wide as a pool of {names(POOLS)}"
        )
    if instruction_set is not None and instruction_set not in instruction_sets():
        known = ", ".join(instruction_sets())
        raise ValueError(f"instruction_set={instruction_set!r} must be one of {known}")
    tiles, tile, q_heads, _ = q.shape
    call = jax.ffi.ffi_call(
        "distkv_micro_attention",
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((tiles, tile, q_heads), jnp.float32),
        ),
    )
    out, lse = call(
        q,
        pool.data,
        jnp.zeros(0, jnp.float32) if pool.scales is None else pool.scales,
        block_ids,
        block_starts,
        rows,
        scale=np.float32(scale),
        window=np.int64(0 if window is None else window),
        soft_cap=np.float32(0 if soft_cap is None else soft_cap),
        instruction_set=instruction_set or "",
    )
    return Partial(out, lse)
