"""MicroAttention for TPUs, in Pallas Mosaic: queries laid out per KV head, blocks fetched ahead."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.partial import Partial
from pallas_kernels.micro_attention.tpu.kernel import Options, kernel
from pallas_kernels.micro_attention.tpu.sizes import Sizes, check_tpu, choose_sizes, padded_queries

VMEM_BYTES = 48 * 2**20
"""Vector memory that the compiler may use: v5p has 64 MiB, the others 128."""


def micro_attention_tpu(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    interpret: bool | pltpu.InterpretParams = False,
    sizes: Sizes | None = None,
) -> Partial:
    """Attend from every row's tile to its blocks; see `contract` for the arrays.

    Args:
        q: Query tiles, float32 or bfloat16.
        pool: Its blocks have 16 to 256 tokens, whole tiles of memory.
        block_ids: Block lists.
        block_starts: Position of each listed block's first token, ascending within a row's range.
        rows: Work.
        scale: Factor on every score.
        window: Sliding window in tokens, or None.
        soft_cap: Soft cap of the scores, or None.
        interpret: Simulate a TPU, on any platform; else compiling fails where there is no TPU.
        sizes: Knobs; None chooses them from the shapes.

    Raises:
        ValueError: The kernel cannot take these shapes, or they need more scalar memory than
            there is.
    """
    tiles, tile, q_heads, head_dim = q.shape
    kv_heads, block_size = pool.data.shape[2:4]
    check_tpu(q, pool, num_entries=block_ids.shape[0], num_rows=rows.shape[0])
    group = q_heads // kv_heads
    queries = tile * group
    sizes = sizes or choose_sizes(pool, queries, q.dtype)
    heads = kv_heads // sizes.cores
    # One tile of lse per core: a decode tile's in one line, a prefill tile's a line for each head.
    lse_shape = (1, heads * queries) if tile == 1 else (heads, queries)

    def tile_and_core(
        core: Int[Array, ""], row: Int[Array, ""], *scalars: jax.Ref
    ) -> tuple[Int[Array, ""], Int[Array, ""]]:
        rows = scalars[-1]
        # Without any row in use the one that runs is padding and names anything.
        tile_id = rows[row * len(Row) + Row.TILE]
        return jnp.where(rows[row * len(Row) + Row.COUNT] > 0, tile_id, 0), core

    q_spec = pl.BlockSpec((1, heads * queries, head_dim), lambda *ids: (*tile_and_core(*ids), 0))
    lse_spec = pl.BlockSpec((1, 1, *lse_shape), lambda *ids: (*tile_and_core(*ids), 0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)

    per_head = q.reshape(tiles, tile, kv_heads, group, head_dim).swapaxes(1, 2)
    per_head = per_head.reshape(tiles, kv_heads * queries, head_dim)
    nothing = Partial(
        jnp.zeros_like(per_head), jnp.full((tiles, sizes.cores, *lse_shape), -jnp.inf, jnp.float32)
    )
    has_scales = pool.scales is not None
    num_in_use = jnp.sum(rows[:, Row.COUNT] > 0, dtype=jnp.int32)
    call = pl.pallas_call(
        functools.partial(kernel, options=Options(scale, window, soft_cap, group, sizes)),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in nothing],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(sizes.cores, jnp.maximum(num_in_use, 1)),
            in_specs=[
                q_spec,
                anywhere,
                anywhere if has_scales else None,
                anywhere,
                anywhere,
            ],
            out_specs=[q_spec, lse_spec],
            scratch_shapes=scratch_shapes(q.dtype, pool, queries, sizes),
        ),
        # Tiles that no row names keep what they had.
        input_output_aliases={5 + has_scales: 0, 6 + has_scales: 1},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name=f"micro_attention_{'decode' if tile == 1 else 'prefill'}",
    )
    out, lse = call(block_ids, block_starts, rows.reshape(-1), per_head, *pool, *nothing)
    out = out.reshape(tiles, kv_heads, tile, group, head_dim).swapaxes(1, 2)
    lse = lse.reshape(tiles, kv_heads, tile, group).swapaxes(1, 2)
    return Partial(out.reshape(q.shape), lse.reshape(tiles, tile, q_heads))


def scratch_shapes(
    dtype: np.dtype, pool: KVPool, queries: int, sizes: Sizes
) -> Sequence[pl.MemoryRef]:
    """Lay out what one core keeps in its own memory, in the order of `Scratch`."""
    kv_heads, block_size, head_dim = pool.data.shape[2:]
    heads = kv_heads // sizes.cores
    padded = padded_queries(queries, dtype)
    fetched = (2, 2, heads, sizes.fetch_blocks * block_size, head_dim)
    shapes = [
        pltpu.VMEM(fetched, pool.data.dtype),  # blocks
        pltpu.SemaphoreType.DMA((2,)),  # arrived
        pltpu.SMEM((3,), jnp.int32),  # ahead
        pltpu.VMEM((heads, padded, head_dim), dtype),  # q
        pltpu.VMEM((heads, padded, 1), jnp.float32),  # top
        pltpu.VMEM((heads, padded, 1), jnp.float32),  # total
        pltpu.VMEM((heads, padded, head_dim), jnp.float32),  # acc
    ]
    if pool.scales is None:
        return shapes
    return [*shapes, pltpu.VMEM((2, sizes.fetch_blocks, 2, heads, block_size), jnp.float32)]
