"""The attention that JAX itself has for a platform, for comparison with MicroAttention."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool


class Batch(NamedTuple):
    """One decode step: the arrays of `micro_attention`, one row a sequence.

    Attributes:
        lengths: Tokens of each sequence, the query's included.
        q: One query tile of one token per sequence.
        pool: Keys and values.
        block_ids: Block lists, one sequence's after the other's.
        block_starts: Position of each listed block's first token.
        rows: One per sequence, in order.
    """

    lengths: tuple[int, ...]
    q: Float[Array, "seqs 1 q_heads head_dim"]
    pool: KVPool
    block_ids: Int[Array, " entries"]
    block_starts: Int[Array, " entries"]
    rows: Int[Array, "seqs 5"]


class Contiguous(NamedTuple):
    """Sequences of one length with their KV side by side.

    Attributes:
        q: Queries.
        k: Keys.
        v: Values.
    """

    q: Float[Array, "seqs 1 q_heads head_dim"]
    k: Float[Array, "seqs tokens kv_heads head_dim"]
    v: Float[Array, "seqs tokens kv_heads head_dim"]


def dense_call(batch: Batch, scale: float) -> Callable[[], object]:
    """Bind `jax.nn.dot_product_attention` to contiguous copies, nothing padded.

    Raises:
        ValueError: KV is quantised.
    """
    _refuse_scales(batch.pool, "dense")

    @jax.jit
    def attend(groups: list[Contiguous]) -> list[Array]:
        return [jax.nn.dot_product_attention(*group, scale=scale) for group in groups]

    return functools.partial(attend, contiguous(batch))


def contiguous(batch: Batch) -> list[Contiguous]:
    """Copy a batch's KV out of its blocks, one group per length."""
    groups = []
    for length in sorted(set(batch.lengths)):
        seqs = [seq for seq, each in enumerate(batch.lengths) if each == length]
        tables = jnp.stack(
            [batch.block_ids[batch.rows[seq, 1] : batch.rows[seq, 2]] for seq in seqs]
        )
        # seqs, blocks, 2, kv_heads, block_size, head_dim -> 2, seqs, tokens, kv_heads, head_dim
        data = batch.pool.data[tables].transpose(2, 0, 1, 4, 3, 5)
        k, v = data.reshape(2, len(seqs), -1, *data.shape[4:])[:, :, :length]
        groups.append(Contiguous(batch.q[jnp.array(seqs)].astype(k.dtype), k, v))
    return groups


def paged_call(batch: Batch, scale: float) -> Callable[[], object]:
    """Bind JAX's paged attention for GPU or TPU, imported only here, to a copy in its layout.

    Raises:
        ValueError: KV is quantised, or the platform has none.
    """
    _refuse_scales(batch.pool, "paged")
    q = (batch.q[:, 0] * scale).astype(batch.pool.data.dtype)
    # blocks, 2, kv_heads, block_size, head_dim -> 2, kv_heads, blocks, block_size, head_dim
    k_pages, v_pages = batch.pool.data.transpose(1, 2, 0, 3, 4)
    lengths = jnp.array(batch.lengths, jnp.int32)
    pages_per_seq = -(-max(batch.lengths) // batch.pool.block_size)
    entries = batch.rows[:, 1:2] + jnp.arange(pages_per_seq)[None]
    tables = batch.block_ids[jnp.minimum(entries, batch.rows[:, 2:3] - 1)]
    platform = jax.devices()[0].platform
    if platform == "gpu":
        from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

        return functools.partial(jax.jit(paged_attention), q, k_pages, v_pages, tables, lengths)
    if platform == "tpu":
        from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

        # A compute block must divide the pages of a sequence.
        at_once = max(count for count in (1, 2, 4, 8) if pages_per_seq % count == 0)
        call = functools.partial(paged_attention, pages_per_compute_block=at_once)
        return functools.partial(jax.jit(call), q, k_pages, v_pages, lengths, tables)
    raise ValueError(f"platform {platform!r} has no paged attention, expected 'gpu' or 'tpu'")


def _refuse_scales(pool: KVPool, name: str) -> None:
    if pool.scales is not None:
        raise ValueError(f"{name!r} cannot read {pool.data.dtype}, expected no quantised KV")
