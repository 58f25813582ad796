"""DistAttention: queries travel to the blocks, partial results travel back, KV stays where it is.

Source: Infinite-LLM, arXiv 2401.02669, DistAttention. Ours sends all partials of a layer in one
packed all_to_all, and computes own tiles over own blocks independently of the gather, so that the
two can overlap.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from distkv_jax.attention.wire import pack, unpack
from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import Partial, micro_attention
from pallas_kernels.scale_reduce import scale_reduce


class TileClass(NamedTuple):
    """Query tiles of one size (decode, prefill, output) on one instance, with their work.

    Attributes:
        q: The queries, heads sharded over `tensor`.
        own: Work of own tiles over own blocks, columns as in `micro_attention.Row`.
        spanning: Own tiles with blocks elsewhere; `tiles` (one past the end) is padding.
        foreign: Work of the gathered tiles over own blocks: tile `i * len(spanning) + s` is the
            s-th spanning tile of instance i. Rows of own tiles are padding.
    """

    q: Float[Array, "tiles tile q_heads head_dim"]
    own: Int[Array, "tiles 5"]
    spanning: Int[Array, " spanning"]
    foreign: Int[Array, "foreign 5"]


class BlockLists(NamedTuple):
    """The block lists of one instance: which block, and the position of its first token."""

    block_ids: Int[Array, " entries"]
    block_starts: Int[Array, " entries"]


def dist_attention(
    classes: Sequence[TileClass],
    pool: KVPool,
    lists: BlockLists,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "tiles tile q_heads head_dim"], ...]:
    """Attend from every tile to its sequence's blocks on all instances.

    Runs inside a `shard_map` that is manual over `instance`; every array is one instance's part. A
    program whose classes all have no spanning rows has no collective over `instance`.

    Args:
        classes: Tile classes; tiles of different sizes never share an array.
        pool: Keys and values of one layer, those of this step already written.
        lists: Block lists that the rows' ranges point into.
        scale: Factor on every score.
        window: Sliding window in tokens, or None.
        soft_cap: Soft cap of the scores, or None.
        implementation: Name of the MicroAttention implementation; None is "xla".

    Returns:
        One output per class, shaped as its queries; zeros for tokens that saw nothing.
    """
    heads = P(None, None, "tensor")

    def island(
        classes: tuple[TileClass, ...], pool: KVPool, lists: BlockLists
    ) -> tuple[Float[Array, "tiles tile q_heads head_dim"], ...]:
        def micro(q: Array, rows: Array) -> Partial:
            return micro_attention(
                q,
                pool,
                lists.block_ids,
                lists.block_starts,
                rows,
                scale=scale,
                window=window,
                soft_cap=soft_cap,
                implementation=implementation,
            )

        spanning = [index for index, tiles in enumerate(classes) if tiles.spanning.shape[0]]
        gathered = gather_queries([classes[index] for index in spanning])
        with jax.named_scope("micro_attention_own"):
            own = [micro(tiles.q, tiles.own) for tiles in classes]
        outs = [partial.out for partial in own]
        if not spanning:
            return tuple(outs)
        with jax.named_scope("micro_attention_foreign"):
            foreign = [
                micro(q, classes[index].foreign)
                for index, q in zip(spanning, gathered, strict=True)
            ]
        returned = return_partials(foreign)
        for index, elsewhere in zip(spanning, returned, strict=True):
            outs[index] = merge(own[index], elsewhere, classes[index].spanning)
        return tuple(outs)

    specs = tuple(TileClass._make((heads, P(), P(), P())) for _ in classes)
    return jax.shard_map(
        island,
        in_specs=(specs, heads, P()),
        out_specs=tuple(heads for _ in classes),
        axis_names={"tensor"},
        check_vma=False,
    )(tuple(classes), pool, lists)


def gather_queries(
    classes: Sequence[TileClass],
) -> list[Float[Array, "gathered tile q_heads head_dim"]]:
    """Bring every instance's spanning queries here, all classes in one all_gather."""
    if not classes:
        return []
    with jax.named_scope("gather_queries"):
        chosen = [tiles.q.at[tiles.spanning].get(mode="fill", fill_value=0) for tiles in classes]
        tokens = jnp.concatenate([q.reshape(-1, *q.shape[2:]) for q in chosen])
        everywhere = lax.all_gather(tokens, "instance")
    instances = everywhere.shape[0]
    parts = split_tokens(everywhere, chosen)
    return [
        part.reshape(instances * q.shape[0], *q.shape[1:])
        for part, q in zip(parts, chosen, strict=True)
    ]


def return_partials(foreign: Sequence[Partial]) -> list[Partial]:
    """Send each foreign tile's partial to the tile's instance, all classes in one all_to_all.

    Returns:
        Per class a partial of shape (instances, spanning, tile, q_heads): what each instance found
        for this instance's spanning tiles.
    """
    instances = lax.axis_size("instance")
    with jax.named_scope("return_partials"):
        packed = [pack(partial) for partial in foreign]
        shaped = [p.reshape(instances, -1, *p.shape[1:]) for p in packed]
        tokens = [p.reshape(instances, -1, *p.shape[3:]) for p in shaped]
        received = lax.all_to_all(jnp.concatenate(tokens, axis=1), "instance", 0, 0)
    parts = split_tokens(received, [p[0] for p in shaped])
    return [
        unpack(part.reshape(p.shape), partial.out.shape[-1])
        for part, p, partial in zip(parts, shaped, foreign, strict=True)
    ]


def split_tokens(
    tokens: Float[Array, "instances tokens q_heads lanes"], like: Sequence[Array]
) -> list[Float[Array, "instances part q_heads lanes"]]:
    """Cut the token axis into as many tokens as each of `like` (tiles, tile, ...) has."""
    ends = list(itertools.accumulate(q.shape[0] * q.shape[1] for q in like))
    return jnp.split(tokens, ends[:-1], axis=1)


def merge(
    own: Partial, elsewhere: Partial, spanning: Int[Array, " spanning"]
) -> Float[Array, "tiles tile q_heads head_dim"]:
    """ScaleReduce the spanning tiles' own partial with those of all instances; others stay."""
    with jax.named_scope("scale_reduce"):
        here_out = own.out.at[spanning].get(mode="fill", fill_value=0)
        here_lse = own.lse.at[spanning].get(mode="fill", fill_value=-jnp.inf)
        merged = scale_reduce(
            jnp.concatenate([here_out[None], elsewhere.out]),
            jnp.concatenate([here_lse[None], elsewhere.lse]),
        )
        return own.out.at[spanning].set(merged.out, mode="drop")
