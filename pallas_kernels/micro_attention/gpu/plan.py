"""Cut the work of a call into equal runs of steps, one per worker.

Source: Stream-K, arXiv 2301.03598: the steps of all segments are laid end to end and every worker
gets an equal run of them, so that one long row and many short ones fill a GPU alike. Lean Attention
(arXiv 2405.10480) does the same for decode.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.gpu.sizes import Sizes

STEPS, FIRST = len(Row), len(Row) + 1
"""Columns of the table after those of `Row`: steps of a segment; steps of all rows before."""


class Plan(NamedTuple):
    """Who does which steps.

    Step numbers count through rows, in a row through segments (KV head, then chunk), in a segment
    through its blocks. A worker's *pieces* are its parts of segments; a piece that is a whole
    segment goes to the segment's place, one that begins before the worker to its first spare place,
    one that ends after it to its second.

    Attributes:
        table: One row for each tile, its range trimmed to blocks that some query sees, with
            `STEPS` and `FIRST`; a tile that no row names has no steps.
        workers: First step, end, row of the first step.
        starts: First step of the segment that each worker's first step is in; then one more, for
            the end. The number of steps stands for "none".
        segments: Place of that segment.
        is_written: Tiles that have any steps.
    """

    table: Int[Array, "tiles 7"]
    workers: Int[Array, "workers 3"]
    starts: Int[Array, " bounds"]
    segments: Int[Array, " bounds"]
    is_written: Bool[Array, " tiles"]


def make_plan(
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    sizes: Sizes,
    *,
    window: int | None,
) -> Plan:
    """Cut; a few small fused programs, the same for every layer of a step.

    The cut goes by tiles: results must not depend, even by rounding, on the order of rows.
    """
    tile = jnp.where(rows[:, Row.COUNT] > 0, rows[:, Row.TILE], sizes.tiles)
    rows = jnp.zeros((sizes.tiles, len(Row)), jnp.int32).at[tile].set(rows, mode="drop")
    rows = trim(block_starts, rows, window=window, block_size=sizes.block_size)
    entries = rows[:, Row.END] - rows[:, Row.BEGIN]
    steps = -(-entries // sizes.blocks_per_step) * sizes.parts
    segments_per_row = sizes.kv_heads * sizes.chunks
    ends = jnp.cumsum(steps * segments_per_row, dtype=jnp.int32)
    firsts = ends - steps * segments_per_row
    total = ends[-1]
    worker = jnp.arange(sizes.num_workers + 1)
    # worker * total might overflow.
    bounds = worker * (total // sizes.num_workers)
    bounds += jnp.minimum(worker, total % sizes.num_workers)
    row = jnp.searchsorted(ends, bounds, side="right", method="compare_all")
    row = jnp.minimum(row, rows.shape[0] - 1).astype(jnp.int32)
    length = jnp.maximum(steps[row], 1)
    segment = (bounds - firsts[row]) // length
    return Plan(
        table=jnp.concatenate([rows, steps[:, None], firsts[:, None]], axis=1),
        workers=jnp.stack([bounds[:-1], bounds[1:], row[:-1]], axis=1),
        starts=jnp.where(bounds < total, firsts[row] + segment * length, total),
        segments=rows[row, Row.TILE] * segments_per_row + segment,
        is_written=steps > 0,
    )


def trim(
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    window: int | None,
    block_size: int,
) -> Int[Array, "rows 5"]:
    """Take blocks that no query of the row sees off both ends of its range."""
    begin, end = rows[:, Row.BEGIN], rows[:, Row.END]
    first = rows[:, Row.POSITION]
    last = first + rows[:, Row.COUNT] - 1
    new_end = first_at_least(block_starts, begin, end, last + 1)
    if window is not None:
        begin = first_at_least(block_starts, begin, new_end, first - window + 2 - block_size)
    return rows.at[:, Row.BEGIN].set(begin).at[:, Row.END].set(new_end)


def first_at_least(
    block_starts: Int[Array, " entries"],
    begin: Int[Array, " rows"],
    end: Int[Array, " rows"],
    position: Int[Array, " rows"],
) -> Int[Array, " rows"]:
    """Find in each ascending range the first block that starts at a position or later.

    A binary search for all rows at once; unrolled, since a loop would be many programs on a GPU.
    """
    for _ in range(block_starts.shape[0].bit_length()):
        middle = (begin + end) // 2
        is_before = block_starts[middle] < position
        is_open = begin < end
        begin, end = (
            jnp.where(is_open & is_before, middle + 1, begin),
            jnp.where(is_open & ~is_before, middle, end),
        )
    return begin
