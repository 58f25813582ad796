"""How the Triton kernel is launched: grid, outputs and constants, chosen from shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool, is_quantised

PROGRAMS = 4 * 108
"""Programs that a launch should have: two for each that an A100 runs at a time."""
SPLIT_TOKENS = 256
"""A part of the keys is at least this long where only one row is in use."""
MIN_DOT = 16
"""Smallest side of a matrix product in Triton."""
MAX_QUERIES = 64
"""Queries of a program; with 128 it spills registers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of `micro_attention_kernel`.

    Attributes:
        grid: Programs: (tiles and their parts, KV heads, parts of the keys).
        outputs: Output and log-sum-exp of every part, the parts leading.
        constants: The kernel's compile-time arguments.
        num_warps: Warps of a program.
        num_stages: Loop iterations in flight: an id, then its block, two of them ahead.
    """

    grid: tuple[int, int, int]
    outputs: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
    constants: dict[str, int | float | bool]
    num_warps: int = 4
    num_stages: int = 5


def plan_launch(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    keys: int | None = None,
    splits: int | None = None,
) -> Launch:
    """Choose a launch; of the arrays only shapes and dtypes are looked at.

    Args:
        q: Query tiles.
        pool: Keys and values.
        block_ids: Block lists.
        rows: Work.
        scale: Factor on every score.
        window: Sliding window in tokens; None for none.
        soft_cap: Of the scores; None for none.
        keys: Slots that an iteration reads, a power of two; None chooses.
        splits: Parts that a row's keys are cut into; None chooses enough to fill the device.
    """
    tiles, tile, q_heads, head_dim = q.shape
    kv_heads, block_size = pool.data.shape[2:4]
    pairs = tile * (q_heads // kv_heads)
    # Float32 products are exact, so they run outside the matrix units, on operands in registers.
    is_wide = q.dtype == jnp.float32
    queries = MIN_DOT if is_wide else min(max(power_of_two(pairs), MIN_DOT), MAX_QUERIES)
    sub_tiles = -(-pairs // queries)
    if keys is None:
        keys = 32 if is_wide or queries > MIN_DOT else 64
    if splits is None:
        most = max(block_ids.shape[0] * block_size // SPLIT_TOKENS, 1)
        splits = min(-(-PROGRAMS // (tiles * sub_tiles * kv_heads)), most)
    return Launch(
        grid=(tiles * sub_tiles, kv_heads, splits),
        outputs=(
            jax.ShapeDtypeStruct((splits, *q.shape), q.dtype if splits == 1 else jnp.float32),
            jax.ShapeDtypeStruct((splits, *q.shape[:-1]), jnp.float32),
        ),
        constants={
            "NUM_ROWS": rows.shape[0],
            "TILES": tiles,
            "TILE": tile,
            "Q_HEADS": q_heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "SCALE": scale,
            "WINDOW": window or 0,
            "SOFT_CAP": soft_cap or 0.0,
            "IS_QUANTISED": is_quantised(np.dtype(pool.data.dtype)),
            "SUB_TILES": sub_tiles,
            "SPLITS": splits,
            "ROWS_PADDED": power_of_two(rows.shape[0]),
            "DIM_PADDED": max(power_of_two(head_dim), MIN_DOT),
            "QUERIES": queries,
            "KEYS": keys,
        },
    )


def power_of_two(count: int) -> int:
    """Round up to a power of two."""
    return 1 << max(count - 1, 0).bit_length()
