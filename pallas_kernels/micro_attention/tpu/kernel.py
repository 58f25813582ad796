"""The kernel body: one query tile against its blocks, fetched ahead and kept twice.

Sources: FlashAttention's online softmax (arXiv 2205.14135); the fetching across rows and the split
of KV heads over cores follow JAX's `ragged_paged_attention` and `paged_attention` (Pallas TPU
ops). Ours reads K and V of all heads of a block in one transfer, and masks only at the edges.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.tpu.sizes import Sizes

# A finite floor for the running maximum: (-inf) - (-inf) would be NaN.
FLOOR = -1e30
# Position of keys that are not there: after every query, and far from overflow.
NOWHERE = 2**30


class Plan(NamedTuple):
    """The scalars, in scalar memory; arrays of one axis, since a second one would be padded."""

    block_ids: jax.Ref
    block_starts: jax.Ref
    rows: jax.Ref

    def get(self, row: Int[Array, ""], column: Row) -> Int[Array, ""]:
        """Read one number of a row."""
        return self.rows[row * len(Row) + column]


class Pool(NamedTuple):
    """The pool, where it is: see `KVPool`."""

    data: jax.Ref
    scales: jax.Ref | None


class Scratch(NamedTuple):
    """What lives from one row to the next, and the running sums of one row.

    Attributes:
        blocks: (2, 2, kv_heads, tokens, head_dim): two fetches of K and V, one core's heads.
        arrived: One semaphore per fetch.
        ahead: The current row's first and last entry, and which fetch its first blocks are in.
        q: (kv_heads, queries, head_dim), the row's queries, here padded to whole tiles.
        top: (kv_heads, queries, 1) running maximum.
        total: (kv_heads, queries, 1) running sum of weights.
        acc: (kv_heads, queries, head_dim) running weighted sum of values.
        scales: (2, fetch_blocks, 2, kv_heads, block_size), or None.
    """

    blocks: jax.Ref
    arrived: jax.Ref
    ahead: jax.Ref
    q: jax.Ref
    top: jax.Ref
    total: jax.Ref
    acc: jax.Ref
    scales: jax.Ref | None = None


class Options(NamedTuple):
    """What is fixed when the kernel is compiled."""

    scale: float
    window: int | None
    soft_cap: float | None
    group: int
    sizes: Sizes


def kernel(
    # scalar memory
    block_ids: jax.Ref,
    block_starts: jax.Ref,
    rows: jax.Ref,
    # inputs: (1, kv_heads * queries, head_dim), the pool, and what the outputs alias
    q: jax.Ref,
    data: jax.Ref,
    scales: jax.Ref | None,
    empty_out: jax.Ref,
    empty_lse: jax.Ref,
    # outputs: as q; (1, 1, parts, kv_heads * queries / parts)
    out: jax.Ref,
    lse: jax.Ref,
    # scratch: see `Scratch`
    *scratch_refs: jax.Ref,
    options: Options,
) -> None:
    """Run one row (grid axis 1) on one core's KV heads (grid axis 0)."""
    del empty_out, empty_lse
    plan, pool = Plan(block_ids, block_starts, rows), Pool(data, scales)
    scratch = Scratch(*scratch_refs)
    row, num_rows = pl.program_id(1), pl.num_programs(1)
    fetch_blocks, step_blocks = options.sizes.fetch_blocks, options.sizes.step_blocks
    block_size = scratch.blocks.shape[3] // fetch_blocks
    entries = functools.partial(visible_entries, plan, block_size=block_size, window=options.window)
    fetch = functools.partial(for_each_copy, plan, pool, scratch, fetch_blocks, block_size)

    @pl.when(row == 0)
    def _() -> None:
        begin, end = entries(row)
        scratch.ahead[0], scratch.ahead[1], scratch.ahead[2] = begin, end, jnp.int32(0)
        fetch(jnp.int32(0), begin, end, "start")

    begin, end, first_slot = scratch.ahead[0], scratch.ahead[1], scratch.ahead[2]
    num_fetches = cdiv(end - begin, fetch_blocks)
    next_begin, next_end = entries(jnp.minimum(row + 1, num_rows - 1))
    next_end = jnp.where(row + 1 < num_rows, next_end, next_begin)
    scratch.q[...] = by_head(q[0], scratch.q.shape)
    scratch.top[...] = jnp.full(scratch.top.shape, FLOOR, jnp.float32)
    scratch.total[...] = jnp.zeros(scratch.total.shape, jnp.float32)
    scratch.acc[...] = jnp.zeros(scratch.acc.shape, jnp.float32)

    def visit(index: Int[Array, ""], slot: Int[Array, ""]) -> Int[Array, ""]:
        entry = begin + index * fetch_blocks
        is_last = index == num_fetches - 1
        ahead = jnp.where(is_last, next_begin, entry + fetch_blocks)
        fetch(1 - slot, ahead, jnp.where(is_last, next_end, end), "start")
        fetch(slot, entry, end, "wait")

        def step(index: Int[Array, ""], _: None) -> None:
            attend(plan, scratch, options, row, slot, index, entry + index * step_blocks, end)

        here = jnp.minimum(end - entry, fetch_blocks)
        lax.fori_loop(0, cdiv(here, step_blocks), step, None)
        return 1 - slot

    next_slot = lax.fori_loop(0, num_fetches, visit, first_slot)

    @pl.when(num_fetches == 0)
    def _() -> None:
        fetch(next_slot, next_begin, next_end, "start")

    scratch.ahead[0], scratch.ahead[1], scratch.ahead[2] = next_begin, next_end, next_slot
    finish(out, lse, scratch, plan.get(row, Row.COUNT) * options.group)


def by_head(
    q: Float[Array, "rows head_dim"], shape: tuple[int, int, int]
) -> Float[Array, "kv_heads queries head_dim"]:
    """Give each KV head's queries tiles of their own; padding is zeros."""
    kv_heads, queries, head_dim = shape
    if q.shape[0] == kv_heads * queries:
        return q.reshape(shape)
    # Moving rows between tiles is for 32 bits only.
    rows = q.astype(jnp.float32).reshape(kv_heads, -1, head_dim)
    padding = jnp.zeros((kv_heads, queries - rows.shape[1], head_dim), jnp.float32)
    return jnp.concatenate([rows, padding], axis=1).astype(q.dtype)


def cdiv(x: Int[Array, ""], y: int) -> Int[Array, ""]:
    """Divide what is not negative, rounding up; `//` needs the sign, and that a TPU to ask."""
    return lax.div(x + (y - 1), jnp.int32(y))


def visible_entries(
    plan: Plan, row: Int[Array, ""], *, block_size: int, window: int | None
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Cut a row's range to blocks that some query sees: a sequence's blocks are in token order."""
    position, count = plan.get(row, Row.POSITION), plan.get(row, Row.COUNT)
    in_use = count > 0
    begin = jnp.where(in_use, plan.get(row, Row.BEGIN), 0)
    end = jnp.where(in_use, plan.get(row, Row.END), 0)

    def first_after(begin: Int[Array, ""], last: Int[Array, ""]) -> Int[Array, ""]:
        """Bisect for the first entry that starts after a position."""

        def halve(bounds: tuple[Int[Array, ""], Int[Array, ""]]) -> tuple[Array, Array]:
            low, high = bounds
            middle = lax.div(low + high, jnp.int32(2))
            is_before = plan.block_starts[middle] <= last
            return jnp.where(is_before, middle + 1, low), jnp.where(is_before, high, middle)

        return lax.while_loop(lambda bounds: bounds[0] < bounds[1], halve, (begin, end))[0]

    # Most often everything up to the end is visible.
    is_all = plan.block_starts[jnp.maximum(end - 1, 0)] < position + count
    visible_end = first_after(jnp.where(is_all, end, begin), position + count - 1)
    if window is None:
        return begin, visible_end
    return first_after(begin, position - window - block_size + 1), visible_end


def for_each_copy(
    plan: Plan,
    pool: Pool,
    scratch: Scratch,
    fetch_blocks: int,
    block_size: int,
    slot: Int[Array, ""],
    entry: Int[Array, ""],
    end: Int[Array, ""],
    action: Literal["start", "wait"],
) -> None:
    """Start, or wait for, the transfers of up to `fetch_blocks` entries from `entry` on."""
    kv_heads = scratch.blocks.shape[2]
    heads = pl.ds(pl.program_id(0) * kv_heads, kv_heads)
    # A list names blocks of the pool; if not, a wrong answer is better than a stray address.
    last_block = pool.data.shape[0] - 1

    def one(index: Int[Array, ""], _: None) -> None:
        block = jnp.clip(plan.block_ids[entry + index], 0, last_block)
        tokens = pl.ds(pl.multiple_of(index * block_size, block_size), block_size)
        copies = [
            pltpu.make_async_copy(
                pool.data.at[block, :, heads],
                scratch.blocks.at[slot, :, :, tokens],
                scratch.arrived.at[slot],
            )
        ]
        if pool.scales is not None and scratch.scales is not None:
            copies.append(
                pltpu.make_async_copy(
                    pool.scales.at[block, :, heads],
                    scratch.scales.at[slot, index],
                    scratch.arrived.at[slot],
                )
            )
        for copy in copies:
            copy.start() if action == "start" else copy.wait()

    lax.fori_loop(0, jnp.clip(end - entry, 0, fetch_blocks), one, None)


def attend(
    plan: Plan,
    scratch: Scratch,
    options: Options,
    row: Int[Array, ""],
    slot: Int[Array, ""],
    index: Int[Array, ""],
    entry: Int[Array, ""],
    end: Int[Array, ""],
) -> None:
    """Add up to `step_blocks` entries from `entry` on, step `index` of a fetch, to the sums."""
    step_blocks = options.sizes.step_blocks
    block_size = scratch.blocks.shape[3] // options.sizes.fetch_blocks
    position, count = plan.get(row, Row.POSITION), plan.get(row, Row.COUNT)
    here = jnp.minimum(end - entry, step_blocks)
    starts = [
        jnp.where(i < here, plan.block_starts[jnp.minimum(entry + i, end - 1)], NOWHERE)
        for i in range(step_blocks)
    ]
    is_plain = starts[-1] + block_size - 1 <= position
    if options.window is not None:
        is_plain &= starts[0] > position + count - 1 - options.window

    def add(mask: "Mask | None") -> None:
        def heads_step(part: Int[Array, ""], _: None) -> None:
            first = part * options.sizes.step_heads
            add_heads(scratch, options, slot, index, first, mask)

        lax.fori_loop(0, scratch.blocks.shape[2] // options.sizes.step_heads, heads_step, None)

    pl.when(is_plain)(lambda: add(None))

    @pl.when(jnp.logical_not(is_plain))
    def _() -> None:
        queries = scratch.q.shape[1]
        keys_at = positions((1, step_blocks * block_size), 1, starts, block_size)
        query = lax.broadcasted_iota(jnp.int32, (queries, 1), 0)
        at = position + lax.div(query, jnp.full_like(query, options.group))
        visible = (query < count * options.group) & (keys_at <= at)
        keys_down = positions((step_blocks * block_size, 1), 0, starts, block_size)
        seen = keys_down < position + count
        if options.window is not None:
            visible &= keys_at > at - options.window
            seen &= keys_down > position - options.window
        add(Mask(visible, seen))


class Mask(NamedTuple):
    """Which query sees which key, and which keys are seen by any."""

    visible: Bool[Array, "queries tokens"]
    seen: Bool[Array, "tokens 1"]


def positions(
    shape: tuple[int, int], axis: int, starts: list[Int[Array, ""]], block_size: int
) -> Int[Array, "rows columns"]:
    """Lay the positions of several blocks' tokens along an axis."""
    token = lax.broadcasted_iota(jnp.int32, shape, axis)
    at = token + starts[0]
    for i, start in enumerate(starts[1:], start=1):
        at = jnp.where(token >= i * block_size, token + (start - i * block_size), at)
    return at


def add_heads(
    scratch: Scratch,
    options: Options,
    slot: Int[Array, ""],
    index: Int[Array, ""],
    first: Int[Array, ""],
    mask: Mask | None,
) -> None:
    """Add one step's tokens to the sums of `step_heads` KV heads."""
    step_blocks, step_heads = options.sizes.step_blocks, options.sizes.step_heads
    num_tokens = scratch.blocks.shape[3] // options.sizes.fetch_blocks * step_blocks
    heads = pl.ds(first, step_heads)
    tokens = pl.ds(pl.multiple_of(index * num_tokens, num_tokens), num_tokens)
    dtype = scratch.q.dtype
    # The matrix unit takes float32 in several passes; bfloat16 is exact in one.
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    dot = functools.partial(
        lax.dot_general, precision=precision, preferred_element_type=jnp.float32
    )

    def scales(part: int) -> Float[Array, "heads 1 tokens"] | None:
        if scratch.scales is None:
            return None
        blocks = [
            scratch.scales[slot, index * step_blocks + i, part, heads] for i in range(step_blocks)
        ]
        return jnp.concatenate(blocks, axis=-1)[:, None, :]

    keys = scratch.blocks[slot, 0, heads, tokens].astype(dtype)
    scores = options.scale * dot(scratch.q[heads], keys, (((2,), (2,)), ((0,), (0,))))
    k_scales, v_scales = scales(0), scales(1)
    if k_scales is not None:
        scores *= k_scales
    if options.soft_cap is not None:
        scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
    if mask is not None:
        scores = jnp.where(mask.visible[None], scores, FLOOR)

    old_top = scratch.top[heads]
    top = jnp.maximum(old_top, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    if mask is not None:
        # While nothing is visible exp(FLOOR - FLOOR) is 1.
        weights = jnp.where(mask.visible[None], weights, 0.0)
    rescale = jnp.exp(old_top - top)
    scratch.top[heads] = top
    scratch.total[heads] = scratch.total[heads] * rescale + jnp.sum(weights, -1, keepdims=True)
    if v_scales is not None:
        weights *= v_scales
    values = scratch.blocks[slot, 1, heads, tokens]
    if mask is not None:
        # A slot that no query may see can hold anything, and 0 * NaN is NaN.
        weights = jnp.where(mask.visible[None], weights, 0.0)
        values = jnp.where(mask.seen[None], values.astype(jnp.float32), 0.0)
    added = dot(weights.astype(dtype), values.astype(dtype), (((2,), (1,)), ((0,), (0,))))
    scratch.acc[heads] = scratch.acc[heads] * rescale + added


def finish(out: jax.Ref, lse: jax.Ref, scratch: Scratch, in_use: Int[Array, ""]) -> None:
    """Normalise the sums of a row; queries past `in_use`, or that saw nothing, give (0, -inf)."""
    kv_heads, padded, head_dim = scratch.acc.shape
    parts, length = lse.shape[2:]
    queries = parts * length // kv_heads
    query = lax.broadcasted_iota(jnp.int32, (padded, 1), 0)
    # Queries past the count can be anything, and so can their sums.
    total = jnp.where((query < in_use)[None], scratch.total[...], 0.0)
    empty = total == 0.0
    safe = jnp.where(empty, 1.0, total)
    normalised = jnp.where(empty, 0.0, scratch.acc[...] / safe)[:, :queries]
    out[0] = normalised.reshape(kv_heads * queries, head_dim).astype(out.dtype)
    log_sum = jnp.where(empty, -jnp.inf, scratch.top[...] + jnp.log(safe))[:, :queries]
    # From sublanes to lanes, by picking the diagonal of each part.
    rows, columns = (lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))
    diagonal = jnp.where((rows == columns)[None], log_sum.reshape(parts, length, 1), 0.0)
    lse[0, 0] = jnp.sum(diagonal, axis=1)
