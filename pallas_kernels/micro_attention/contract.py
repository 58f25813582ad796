"""The contract of MicroAttention: what goes in, what is checked before tracing a kernel.

A *tile* is up to `tile` consecutive query tokens of one sequence. A *row* sends one tile over a
range of the block lists; the (tile, block) pairs of the range are enumerated inside the kernel, so
that a plan stays O(blocks + tokens).

| array | shape | meaning |
|---|---|---|
| q | tiles, tile, q_heads, head_dim | queries, at least as wide as plain data |
| pool.data | blocks, 2, kv_heads, block_size, head_dim | K (0) and V (1) of every block |
| pool.scales | blocks, 2, kv_heads, block_size | factors of quantised data, else None |
| block_ids | entries | blocks of the pool, each sequence's in token order |
| block_starts | entries | position of the first token of that block |
| rows | rows, 5 | which tile, over which entries, at which positions: see `Row` |

Slots that no query may see, their scales, queries past a tile's count and blocks that no row in use
names can hold anything, NaN included, and must not reach a result.
"""

import enum

from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool, is_quantised, query_dtype


class Row(enum.IntEnum):
    """The columns of a row; rows in use come first, a row with `COUNT` 0 is padding."""

    TILE = 0
    """Index of the query tile; at most one row in use names a tile."""
    BEGIN = 1
    """First entry of the block lists to attend to."""
    END = 2
    """One past the last entry."""
    POSITION = 3
    """Position of the tile's first token: it sees keys at positions up to its own."""
    COUNT = 4
    """Tokens of the tile in use, at least 1; the others are given back empty."""


def check_shapes(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " starts"],
    rows: Int[Array, "rows columns"],
    *,
    window: int | None,
) -> None:
    """Refuse shapes that no implementation can run; its own signature takes any.

    Raises:
        ValueError: The first rule that is broken, with the sizes.
    """
    q_heads, head_dim = q.shape[2:]
    parts, kv_heads, _, pool_head_dim = pool.data.shape[1:]
    if parts != 2:
        raise ValueError(f"pool has {parts} parts a block, expected 2 (K and V)")
    if q_heads % kv_heads:
        raise ValueError(f"q_heads={q_heads} must be a multiple of kv_heads={kv_heads}")
    if head_dim != pool_head_dim:
        raise ValueError(f"q has head_dim={head_dim}, pool has head_dim={pool_head_dim}")
    if is_quantised(pool.data.dtype) != (pool.scales is not None):
        raise ValueError(
            f"pool of {pool.data.dtype} has {'no ' if pool.scales is None else ''}scales, "
            "expected them with int8 and float8_e4m3fn only"
        )
    if query_dtype(q.dtype, pool.data.dtype) != q.dtype:
        raise ValueError(
            f"q is {q.dtype}, expected at least as wide as the pool's {pool.data.dtype}"
        )
    if pool.scales is not None and pool.scales.shape != pool.data.shape[:-1]:
        raise ValueError(
            f"pool has scales of shape {pool.scales.shape}, expected {pool.data.shape[:-1]}"
        )
    if block_ids.shape != block_starts.shape:
        raise ValueError(f"{block_ids.shape[0]} block_ids, {block_starts.shape[0]} block_starts")
    if rows.shape[1] != len(Row):
        raise ValueError(f"rows have {rows.shape[1]} columns, expected {len(Row)}")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1")
