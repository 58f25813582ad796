"""MicroAttention for NVIDIA Hopper GPUs, in Pallas Mosaic GPU."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.gpu.kernel import attend_pieces
from pallas_kernels.micro_attention.gpu.merge import merge_pieces
from pallas_kernels.micro_attention.gpu.plan import make_plan
from pallas_kernels.micro_attention.gpu.sizes import (
    Sizes,
    check_block_size,
    check_hardware_limits,
    sizes_of,
)
from pallas_kernels.micro_attention.gpu.tokens import Attend
from pallas_kernels.micro_attention.partial import Partial

NUM_SMS = 132
"""Of an H100 or H200 with SXM socket."""


def micro_attention_gpu(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    num_ctas: int | None = None,
    interpret: Any = None,
) -> Partial:
    """Attend from every row's tile to its blocks on a Hopper GPU; see `contract` for the arrays.

    Decode and prefill are one kernel: its work is cut in equal runs over all SMs, then pieces that
    belong together are merged.

    Args:
        q: Query tiles, bfloat16 or float16, head_dim 64 or 128.
        pool: Keys and values, blocks of 8, 16, 32 or a multiple of 64 tokens, in the same dtype;
            or int8 or float8_e4m3fn with head_dim 128 and blocks of at least 32 tokens.
        block_ids: Block lists.
        block_starts: Position of each listed block's first token.
        rows: Work.
        scale: Factor on every score.
        window: Sliding window in tokens; None for none.
        soft_cap: Soft cap of the scores; None for none.
        num_ctas: CTAs that the work is cut for; None is one for each SM of an H100.
        interpret: JAX's InterpretGPUParams (it exports them nowhere) to simulate a GPU, which takes
            any dtype and head_dim; None runs on one.

    Raises:
        TypeError: A dtype that Hopper's matrix units do not multiply.
        ValueError: A size that the kernel does not take.
    """
    # Simulated CTAs take their turn, and one of a decode has two workers already.
    sizes = sizes_of(q, pool, num_ctas=num_ctas or (1 if interpret else NUM_SMS))
    check_block_size(sizes.block_size)
    if not interpret:
        check_hardware_limits(sizes)
    plan = make_plan(block_starts, rows, sizes, window=window)
    outs, lses = attend_pieces(
        rows_of_queries(q, sizes),
        pool.data.reshape(-1, sizes.head_dim),
        None if pool.scales is None else pool.scales.reshape(-1),
        block_ids,
        block_starts,
        plan,
        sizes=sizes,
        attend=Attend(scale=scale, window=window, soft_cap=soft_cap),
        interpret=interpret,
    )
    merged = merge_pieces(
        outs.reshape(-1, sizes.chunk, sizes.head_dim), lses.reshape(-1, sizes.chunk), plan, sizes
    )
    return Partial(
        tokens_of_rows(merged.out, sizes).reshape(q.shape).astype(q.dtype),
        tokens_of_rows(merged.lse[..., None], sizes).reshape(q.shape[:-1]),
    )


def rows_of_queries(
    q: Float[Array, "tiles tile q_heads head_dim"], sizes: Sizes
) -> Float[Array, "rows head_dim"]:
    """Lay queries out by tile, KV head and then (token, head of the group), in whole chunks."""
    q = q.reshape(sizes.tiles, sizes.tile, sizes.kv_heads, sizes.group, sizes.head_dim)
    q = q.swapaxes(1, 2).reshape(sizes.tiles, sizes.kv_heads, sizes.queries, sizes.head_dim)
    padding = sizes.chunks * sizes.chunk - sizes.queries
    return jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0))).reshape(-1, sizes.head_dim)


def tokens_of_rows(
    x: Float[Array, "tiles kv_heads rows width"], sizes: Sizes
) -> Float[Array, "tiles tile kv_heads group width"]:
    """Undo `rows_of_queries`."""
    x = x[:, :, : sizes.queries]
    x = x.reshape(sizes.tiles, sizes.kv_heads, sizes.tile, sizes.group, x.shape[-1])
    return x.swapaxes(1, 2)


__all__ = ["micro_attention_gpu"]
