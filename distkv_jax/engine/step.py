"""One step of all instances as a pure function: a step plan in, sampled tokens and new pools out.

The whole step is one `shard_map`, manual over `instance`: left to the partitioner, row gathers,
top-k and token feedback would each grow a collective. `tensor` stays Auto, except inside the
attention island.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from distkv_jax.attention import BlockLists, TileClass, dist_attention, write_kv
from distkv_jax.engine.plan import (
    FLAG_ADJUST,
    FLAG_BAN_STOP,
    FLAG_LOGPROBS,
    PlanArrays,
    device_views,
)
from distkv_jax.engine.sampler import RowParams, Sampled, sample
from distkv_jax.engine.sampler_state import SamplerState, commit
from distkv_jax.engine.shapes import PlanShape
from distkv_jax.models.decoder import Decoder, DecoderLayer
from distkv_jax.models.rotary import Rotary
from pallas_kernels.kv_pool import KVPool, query_dtype

Pools = tuple[KVPool, ...]
"""One pool per layer."""


class StepResult(NamedTuple):
    """What a step leaves.

    Attributes:
        pools: The pools with this step's K and V; replace those that went in.
        state: The sampler's state with this step's tokens; replaces the one that went in.
        ids: Sampled token of every output row of every instance, equal on all of them.
        sampled: Log-probabilities of each instance's output rows; under `StepOptions.gathers` of
            every instance's, equal on all of them.
    """

    pools: Pools
    state: SamplerState
    ids: Int[Array, " all_rows"]
    sampled: Sampled


class StepOptions(NamedTuple):
    """What a step is compiled for besides its shapes.

    Attributes:
        scale: Of the attention's logits.
        window: Of sliding attention, in tokens; None for none.
        max_logprobs: Alternatives that the sampler reports for each row.
        implementation: Of MicroAttention.
        gathers: Every instance gives the log-probabilities of all: where instances are in several
            processes, the one that leads can read only what is there too.
    """

    scale: float
    window: int | None
    max_logprobs: int
    implementation: str | None
    gathers: bool = False


def make_step(
    graphdef: nnx.GraphDef[Decoder],
    to_params: Callable[[list[Array]], nnx.State],
    shape: PlanShape,
    mesh: Mesh,
    options: StepOptions,
) -> Callable[[list[Array], Pools, SamplerState, Int[Array, "instances words"]], StepResult]:
    """Build the function of a step; jit it with the pools and the state donated.

    The parameters are passed as the leaves that `to_params` puts together.
    """
    return jax.shard_map(
        functools.partial(instance_step, graphdef, to_params, shape, options),
        mesh=mesh,
        in_specs=(P(), P("instance"), P(), P("instance")),
        out_specs=StepResult._make(
            (P("instance"), P(), P(), P() if options.gathers else P("instance"))
        ),
        axis_names={"instance"},
        check_vma=False,
    )


def instance_step(
    graphdef: nnx.GraphDef[Decoder],
    to_params: Callable[[list[Array]], nnx.State],
    shape: PlanShape,
    options: StepOptions,
    params: list[Array],
    pools: Pools,
    state: SamplerState,
    buffer: Int[Array, "1 words"],
) -> StepResult:
    """Run one instance's part of a step. Donate `pools` and `state`, the results replace them."""
    plan = device_views(buffer[0], shape)
    model = nnx.merge(graphdef, to_params(params))
    x = model.embed(token_ids(plan, state, shape))
    rotary = model.rotary(plan.positions)
    new_pools = []
    for index, layer in enumerate(model.layers):
        is_last = index == len(pools) - 1
        with jax.named_scope(f"layer_{index}"):
            layer_graphdef, layer_params = nnx.split(layer)
            run = functools.partial(layer_step, layer_graphdef, shape, options, is_last)
            x, pool = run(layer_params, x, rotary, pools[index], plan)
        new_pools.append(pool)

    with jax.named_scope("sample"):
        logits = lax.with_sharding_constraint(model.logits(x), P(None, None))
        sampled = sample(logits, state, row_params(plan), max_logprobs=options.max_logprobs)
    with jax.named_scope("feed_back"):
        if options.gathers:
            slot, sampled = gather_rows(plan.slot, sampled)
            ids = jnp.asarray(sampled.ids)
        else:
            everyone = lax.all_gather(jnp.stack([plan.slot, sampled.ids]), "instance")
            slot, ids = everyone.swapaxes(0, 1).reshape(2, -1)
        state = commit(state, slot, ids)
    return StepResult(tuple(new_pools), state, ids, sampled)


def gather_rows(
    slot: Int[Array, " rows"], sampled: Sampled
) -> tuple[Int[Array, " all_rows"], Sampled]:
    """Bring all instances' output rows to all of them, in one collective: all are of four bytes."""
    parts = (slot, *sampled)
    columns = [part.reshape(len(slot), -1) for part in parts]
    bits = [lax.bitcast_convert_type(column, jnp.int32) for column in columns]
    everyone = lax.all_gather(jnp.concatenate(bits, axis=1), "instance", tiled=True)
    ends = itertools.accumulate(column.shape[1] for column in columns)
    split = jnp.split(everyone, list(ends)[:-1], axis=1)
    slot, *rest = (
        lax.bitcast_convert_type(column, part.dtype).reshape(-1, *part.shape[1:])
        for column, part in zip(split, parts, strict=True)
    )
    return slot, Sampled(*rest)


# Inlined: a function that several layers call crashes the TPU's partitioner (libtpu 0.0.42) where
# `tensor` is above 1.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def layer_step(
    graphdef: nnx.GraphDef[DecoderLayer],
    shape: PlanShape,
    options: StepOptions,
    is_last: bool,
    params: nnx.State,
    x: Float[Array, "tokens hidden"],
    rotary: Rotary,
    pool: KVPool,
    plan: PlanArrays,
) -> tuple[Float[Array, "rows hidden"], KVPool]:
    """Run one layer: write K and V, attend, finish. In the last one only output rows are queries.

    Jitted by itself because all layers but the last have the same shapes: they are traced once.
    """
    layer = nnx.merge(graphdef, params)
    k, v = layer.kv(x, rotary)
    slots = plan.positions % pool.block_size
    pool = write_kv(pool, k, v, plan.blocks, slots, implementation=options.implementation)
    if is_last:
        x = x[plan.output_tokens]
        rotary = jax.tree.map(lambda table: table[plan.output_tokens], rotary)
    q = layer.q(x, rotary)
    q = q.astype(query_dtype(q.dtype, pool.data.dtype))
    attended = dist_attention(
        [output_class(q, plan)] if is_last else token_classes(q, plan, shape),
        pool,
        BlockLists(plan.block_ids, plan.block_starts),
        scale=options.scale,
        window=options.window,
        implementation=options.implementation,
    )
    tokens = [out.reshape(-1, *out.shape[2:]) for out in attended]
    return layer.finish(x, jnp.concatenate(tokens).astype(x.dtype)), pool


def token_ids(plan: PlanArrays, state: SamplerState, shape: PlanShape) -> Int[Array, " tokens"]:
    """The step's input tokens; the host does not know yet what a running sequence sampled last."""
    decode, prefill = jnp.split(plan.tokens, [shape.decode_rows])
    fed_back = state.last_token.at[plan.decode_slots].get(mode="fill", fill_value=0)
    return jnp.concatenate([jnp.where(decode < 0, fed_back, decode), prefill])


def token_classes(
    q: Float[Array, "tokens q_heads head_dim"], plan: PlanArrays, shape: PlanShape
) -> list[TileClass]:
    """Cut a step's queries into its decode tiles and its prefill tiles."""
    decode, prefill = jnp.split(q, [shape.decode_rows])
    classes = [
        TileClass(decode[:, None], plan.decode_own, plan.decode_spanning, plan.decode_foreign)
    ]
    if shape.prefill_tiles:
        tiles = prefill.reshape(shape.prefill_tiles, shape.tile, *q.shape[1:])
        classes.append(
            TileClass(tiles, plan.prefill_own, plan.prefill_spanning, plan.prefill_foreign)
        )
    return classes


def output_class(q: Float[Array, "rows q_heads head_dim"], plan: PlanArrays) -> TileClass:
    """The queries of the last layer: every output row is a tile of one token."""
    return TileClass(q[:, None], plan.output_own, plan.output_spanning, plan.output_foreign)


def row_params(plan: PlanArrays) -> RowParams:
    """What the sampler is to do with each output row."""
    return RowParams(
        slot=plan.slot,
        position=plan.position,
        seed=jnp.stack([plan.seed_low, plan.seed_high], axis=-1).astype(jnp.uint32),
        temperature=plan.temperature,
        top_p=plan.top_p,
        min_p=plan.min_p,
        presence_penalty=plan.presence_penalty,
        frequency_penalty=plan.frequency_penalty,
        repetition_penalty=plan.repetition_penalty,
        top_k=plan.top_k,
        target=plan.target,
        ban_stop=(plan.flags & FLAG_BAN_STOP) != 0,
        adjust=(plan.flags & FLAG_ADJUST) != 0,
        wants_logprobs=(plan.flags & FLAG_LOGPROBS) != 0,
    )
