"""A consumer warpgroup: attention of one chunk's queries over the steps of a piece.

Online softmax as in FlashAttention-2 (arXiv 2307.08691), in powers of two.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.micro_attention.gpu.matrix import (
    MATRIX,
    PER_COLUMN,
    PER_ROW,
    Matrix,
    Ref,
    full,
    iota,
)
from pallas_kernels.micro_attention.gpu.ring import Ring
from pallas_kernels.micro_attention.gpu.sizes import QUERIES, STEP, Sizes
from pallas_kernels.micro_attention.gpu.tokens import Attend, Where, is_seen, locate, positions
from pallas_kernels.micro_attention.gpu.walk import Piece, walk

# A finite floor for the running maximum: (-inf) - (-inf) would be NaN. Hidden scores are -inf, so
# that their weights are exactly 0 whatever the maximum.
FLOOR = -1e30
LOG2_E = math.log2(math.e)


class Own(NamedTuple):
    """What one consumer alone uses.

    Attributes:
        queries: (QUERIES, head_dim) of shared memory.
        queries_full: Arrives when the queries are there.
        stage: (QUERIES, COLUMNS) of shared memory, float32, for output on its way out.
        stage_lse: (QUERIES,) of it.
        plain: (STEP, head_dim) of it where the pool is quantised: K or V in the queries' dtype.
    """

    queries: Ref
    queries_full: Ref
    stage: Ref
    stage_lse: Ref
    plain: Ref | None


class Running(NamedTuple):
    """The online softmax: running maximum (in powers of two), sum and weighted values."""

    top: Float[Array, " queries"]
    total: Float[Array, " queries"]
    acc: Float[Array, "queries head_dim"]


class Lists(NamedTuple):
    """Global memory that a consumer reads and writes.

    Attributes:
        queries: (segments * chunk, head_dim).
        block_starts: Block lists.
        table: Of the plan.
        workers: Of the plan.
        out: (places * chunk, head_dim), float32.
        lse: (places * chunk,), float32.
    """

    queries: Ref
    block_starts: Ref
    table: Ref
    workers: Ref
    out: Ref
    lse: Ref


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Consumer:
    """One consumer warpgroup of a ring.

    Attributes:
        index: Which of the ring's consumers.
        worker: Whose steps it does.
        first_slot: Of its ring.
        matrix: Its matrix unit.
        sizes: What the kernel is compiled for.
        attend: How scores are made.
        lists: Global memory.
        ring: The ring.
        own: Its own shared memory.
    """

    index: Int[Array, ""]
    worker: Int[Array, ""]
    first_slot: Int[Array, ""]
    matrix: Matrix
    sizes: Sizes
    attend: Attend
    lists: Lists
    ring: Ring
    own: Own


def consume(me: Consumer) -> None:
    """Attend from the chunks of a worker's pieces and write each piece's partial."""
    sizes, ring, own = me.sizes, me.ring, me.own

    @pl.loop(me.first_slot, me.first_slot + sizes.depth)
    def _(slot: Int[Array, ""]) -> None:
        plgpu.barrier_arrive(ring.keys_empty.at[slot])
        plgpu.barrier_arrive(ring.values_empty.at[slot])

    first = me.lists.workers[me.worker, 0]

    def visit(piece: Piece) -> None:
        rows = pl.ds(piece.place * sizes.chunk + me.index * sizes.box, sizes.box)
        plgpu.copy_gmem_to_smem(
            me.lists.queries.at[rows], own.queries.at[pl.ds(0, sizes.box)], own.queries_full
        )
        plgpu.barrier_wait(own.queries_full)
        start = Running(
            full(me.matrix, (QUERIES,), FLOOR, PER_ROW),
            full(me.matrix, (QUERIES,), 0.0, PER_ROW),
            full(me.matrix, (QUERIES, sizes.head_dim), 0.0, MATRIX),
        )

        def take(step: Int[Array, ""], running: Running) -> Running:
            slot = me.first_slot + lax.rem(step - first, jnp.int32(sizes.depth))
            return attend_step(me, piece, step, slot, running)

        write(me, piece, lax.fori_loop(piece.step, piece.stop, take, start))

    walk(me.lists.table, me.lists.workers, me.worker, sizes, visit)


def attend_step(
    me: Consumer, piece: Piece, step: Int[Array, ""], slot: Int[Array, ""], running: Running
) -> Running:
    """Attend to the tokens of one step."""
    matrix, sizes, ring = me.matrix, me.sizes, me.ring
    where = locate(me.lists.block_starts, piece, step, sizes, me.attend)
    plgpu.barrier_wait(ring.keys_full.at[slot])
    keys = plain(me, ring.keys.at[slot])
    scores = bend(me, matrix.scores(me.own.queries, keys), slot)
    plgpu.barrier_arrive(ring.keys_empty.at[slot])
    scores = lax.cond(where.is_plain, lambda s: s, lambda s: hide(me, piece, where, s), scores)

    top = jnp.maximum(running.top, jnp.max(scores, axis=1))
    rescale = jnp.exp2(running.top - top)
    weights = jnp.exp2(scores - spread(top, scores.shape, 0))
    total = running.total * rescale + jnp.sum(weights, axis=1)
    acc = running.acc * spread(rescale, running.acc.shape, 0)

    plgpu.barrier_wait(ring.values_full.at[slot])
    if ring.scales is not None:
        scales = lax.cond(
            where.is_live,
            lambda s: s,
            lambda s: drop(me, piece, where, s),
            matrix.lay(ring.scales[slot, 1], PER_COLUMN),
        )
        weights *= spread(scales, weights.shape, 1)
    values = plain(me, ring.values.at[slot])
    pl.when(jnp.logical_not(where.is_live))(lambda: clean(me, piece, where, slot, values))
    acc = matrix.weigh(acc, weights.astype(sizes.q_dtype), values)
    plgpu.barrier_arrive(ring.values_empty.at[slot])
    return Running(top, total, acc)


def spread(x: Shaped[Array, " n"], shape: tuple[int, ...], axis: int) -> Shaped[Array, "a b"]:
    """Repeat a vector along the other axis of a matrix."""
    return lax.broadcast_in_dim(x, shape, [axis])


def plain(me: Consumer, tokens: Ref) -> Ref:
    """Give keys or values in the queries' dtype: quantised ones are converted, unscaled."""
    if me.own.plain is None:
        return tokens
    numbers = tokens[...]
    if numbers.dtype == jnp.float8_e4m3fn:  # Hopper converts it to float16 only.
        numbers = numbers.astype(jnp.float16)
        numbers = numbers if me.sizes.q_dtype == jnp.float16 else numbers.astype(jnp.float32)
    me.own.plain[...] = numbers.astype(me.sizes.q_dtype)
    plgpu.commit_smem()
    return me.own.plain


def bend(
    me: Consumer, scores: Float[Array, "queries tokens"], slot: Int[Array, ""]
) -> Float[Array, "queries tokens"]:
    """Scale and cap raw scores, and express them in powers of two."""
    if me.ring.scales is not None:
        scales = me.matrix.lay(me.ring.scales[slot, 0], PER_COLUMN)
        scores *= spread(scales, scores.shape, 1)
    if me.attend.soft_cap is None:
        return scores * (me.attend.scale * LOG2_E)
    # tanh(x) = 1 - 2 / (exp(2 x) + 1): the hardware's own tanh has 11 bits.
    power = jnp.exp2(scores * (2 * LOG2_E * me.attend.scale / me.attend.soft_cap))
    return (1.0 - 2.0 / (power + 1.0)) * (me.attend.soft_cap * LOG2_E)


def hide(
    me: Consumer, piece: Piece, where: Where, scores: Float[Array, "queries tokens"]
) -> Float[Array, "queries tokens"]:
    """Make scores -inf where the query must not see the token."""
    keys_at = positions(iota(me.matrix, scores.shape, 1, MATRIX), where, me.sizes)
    token = token_of_query(me, piece, iota(me.matrix, scores.shape, 0, MATRIX))
    at = token + piece.position
    visible = keys_at <= at
    if me.attend.window is not None:
        visible &= keys_at > at - me.attend.window
    return jnp.where(visible, scores, -jnp.inf)


def token_of_query(me: Consumer, piece: Piece, row: Int[Array, "..."]) -> Int[Array, "..."]:
    """Which token of the tile a row of the matrix unit is a query of."""
    query = row + (piece.chunk * me.sizes.chunk + me.index * me.sizes.box)
    return query if me.sizes.group == 1 else lax.div(query, jnp.full_like(query, me.sizes.group))


def drop(
    me: Consumer, piece: Piece, where: Where, scales: Float[Array, " tokens"]
) -> Float[Array, " tokens"]:
    """Zero the scales of values that no query sees."""
    at = positions(iota(me.matrix, scales.shape, 0, PER_COLUMN), where, me.sizes)
    return jnp.where(is_seen(at, piece, me.attend), scales, 0.0)


def clean(me: Consumer, piece: Piece, where: Where, slot: Int[Array, ""], values: Ref) -> None:
    """Zero values that no query sees: they can be NaN, and 0 * NaN is NaN."""

    def zero() -> None:
        shape = (STEP, me.sizes.head_dim)
        at = positions(iota(me.matrix, shape, 0, MATRIX), where, me.sizes)
        kept = values[...]
        values[...] = jnp.where(is_seen(at, piece, me.attend), kept, jnp.zeros_like(kept))
        plgpu.commit_smem()

    is_clean = me.ring.values_clean
    if is_clean is None:
        zero()
        return

    # The other consumer reads the same values.
    @pl.when(me.index == 0)
    def _() -> None:
        zero()
        plgpu.barrier_arrive(is_clean.at[slot])

    @pl.when(me.index != 0)
    def _() -> None:
        plgpu.barrier_wait(is_clean.at[slot])


def write(me: Consumer, piece: Piece, running: Running) -> None:
    """Write a piece's partial: normalised output and lse; (0, -inf) for what saw nothing."""
    matrix, sizes, own = me.matrix, me.sizes, me.own
    row = iota(matrix, (QUERIES,), 0, PER_ROW)
    filled = (running.total > 0) & (token_of_query(me, piece, row) < piece.count)
    total = jnp.where(filled, running.total, 1.0)
    lse = jnp.where(filled, running.top / LOG2_E + jnp.log(total), -jnp.inf)
    spare = sizes.num_segments + 2 * me.worker
    place = jnp.where(piece.stop == piece.segment_end, piece.place, spare + 1)
    place = jnp.where(piece.step == piece.segment, place, spare)
    rows = pl.ds(place * sizes.chunk + me.index * sizes.box, sizes.box)
    staged = pl.ds(0, sizes.box)
    own.stage_lse[...] = lse
    share = jnp.where(filled, 1.0 / total, 0.0)
    keep = spread(filled, running.acc.shape, 0)
    out = jnp.where(keep, running.acc * spread(share, running.acc.shape, 0), 0.0)
    columns = own.stage.shape[1]
    for column in range(0, sizes.head_dim, columns):
        own.stage[...] = out[:, column : column + columns]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own.stage.at[staged], me.lists.out.at[rows, pl.ds(column, columns)])
        if column == 0:
            plgpu.copy_smem_to_gmem(own.stage_lse.at[staged], me.lists.lse.at[rows])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
