"""MicroAttention in plain XLA: the portable implementation, for every platform.

One loop over the rows in use, inside it one loop over the row's blocks with FlashAttention's
online softmax (arXiv 2205.14135). Both trip counts are run-time values, so time follows the pairs
that exist and nothing larger than a block is ever materialised.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.partial import Partial

# A finite floor for the running maximum: (-inf) - (-inf) would be NaN. Masked scores stay at it,
# and their weights are masked too.
FLOOR = -1e30


def micro_attention_xla(
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
    """Attend from every row's tile to its blocks; see `contract` for the arrays."""
    tiles, tile, q_heads, head_dim = q.shape
    kv_heads, block_size = pool.data.shape[2:4]
    group = q_heads // kv_heads
    token_of_query = jnp.repeat(jnp.arange(tile), group)

    def attend(row: Int[Array, " 5"]) -> Partial:
        queries = lax.dynamic_index_in_dim(q, row[Row.TILE], keepdims=False)
        queries = queries.reshape(tile, kv_heads, group, head_dim).swapaxes(0, 1)
        queries = queries.reshape(kv_heads, tile * group, head_dim)
        at = row[Row.POSITION] + token_of_query
        in_use = token_of_query < row[Row.COUNT]

        def visit(entry, carry):
            top, total, acc = carry
            block, scales = read_block(pool, block_ids[entry])
            keys_at = block_starts[entry] + jnp.arange(block_size)
            visible = in_use[:, None] & (keys_at[None, :] <= at[:, None])
            if window is not None:
                visible &= keys_at[None, :] > at[:, None] - window
            scores = scale * jnp.einsum(
                "hqd,hsd->hqs",
                queries,
                block[0].astype(q.dtype),
                preferred_element_type=jnp.float32,
            )
            if scales is not None:
                scores *= scales[0][:, None, :]
            if soft_cap is not None:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            new_top = jnp.maximum(top, jnp.max(jnp.where(visible, scores, FLOOR), axis=-1))
            # While nothing is visible exp(FLOOR - FLOOR) is 1: mask the weight, not the score only.
            weights = jnp.where(visible, jnp.exp(scores - new_top[..., None]), 0.0)
            # A slot that no query may see can hold anything, and 0 * NaN is NaN.
            is_seen = jnp.any(visible, axis=0)
            values = jnp.where(is_seen[None, :, None], block[1].astype(q.dtype), 0)
            rescale = jnp.exp(top - new_top)
            total = total * rescale + jnp.sum(weights, axis=-1)
            if scales is not None:
                weights *= jnp.where(is_seen, scales[1], 0)[:, None, :]
            acc = acc * rescale[..., None] + jnp.einsum(
                "hqs,hsd->hqd",
                weights.astype(values.dtype),
                values,
                preferred_element_type=jnp.float32,
            )
            return new_top, total, acc

        start = (
            jnp.full((kv_heads, tile * group), FLOOR, jnp.float32),
            jnp.zeros((kv_heads, tile * group), jnp.float32),
            jnp.zeros((kv_heads, tile * group, head_dim), jnp.float32),
        )
        top, total, acc = lax.fori_loop(row[Row.BEGIN], row[Row.END], visit, start)
        empty = total == 0
        out = jnp.where(empty[..., None], 0.0, acc / jnp.where(empty, 1.0, total)[..., None])
        lse = jnp.where(empty, -jnp.inf, top + jnp.log(jnp.where(empty, 1.0, total)))
        out = out.reshape(kv_heads, tile, group, head_dim).swapaxes(0, 1)
        lse = lse.reshape(kv_heads, tile, group).swapaxes(0, 1)
        return Partial(
            out.reshape(tile, q_heads, head_dim).astype(q.dtype), lse.reshape(tile, q_heads)
        )

    def place(index, partial):
        row = lax.dynamic_index_in_dim(rows, index, keepdims=False)
        return Partial(
            *(
                lax.dynamic_update_index_in_dim(into, one, row[Row.TILE], 0)
                for into, one in zip(partial, attend(row), strict=True)
            )
        )

    nothing = Partial(jnp.zeros_like(q), jnp.full((tiles, tile, q_heads), -jnp.inf, jnp.float32))
    return lax.fori_loop(0, jnp.sum(rows[:, Row.COUNT] > 0), place, nothing)


def read_block(
    pool: KVPool, block: Int[Array, ""]
) -> tuple[Num[Array, "2 kv_heads block_size head_dim"], Float[Array, "2 kv_heads tokens"] | None]:
    """Slice one block out of a pool, with its scales if it has any."""
    data = lax.dynamic_index_in_dim(pool.data, block, keepdims=False)
    if pool.scales is None:
        return data, None
    return data, lax.dynamic_index_in_dim(pool.scales, block, keepdims=False)
