"""Moving blocks between instances on the devices: any block anywhere, with every pool full too.

Source: Infinite-LLM, arXiv 2401.02669, `move_kvcache`. Ours sends one layer's blocks of all pairs
of instances in one all_to_all of padded buffers. Every block is read before any is written, so two
blocks can change places.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Num

from pallas_kernels.kv_pool import KVPool


def move_blocks(
    pool: KVPool,
    send: Int[Array, "instances lanes"],
    receive: Int[Array, "instances lanes"],
) -> KVPool:
    """Copy blocks of one layer. Donate the pool, the result replaces it.

    Runs inside a `shard_map` that is manual over `instance`; every array is one instance's part.

    Args:
        pool: Keys and values of one layer.
        send: For each instance the blocks of this one that go there; any index is padding where the
            receiver does not want it.
        receive: For each instance the blocks of this one that take what it sends, lane by lane; one
            past the last block drops it. No block is named twice.
    """
    heads = P(None, None, "tensor")

    def island(pool: KVPool, send: Array, receive: Array) -> KVPool:
        return jax.tree.map(lambda part: move_part(part, send, receive), pool)

    with jax.named_scope("move_blocks"):
        return jax.shard_map(
            island,
            in_specs=(heads, P(), P()),
            out_specs=heads,
            axis_names={"tensor"},
            check_vma=False,
        )(pool, send, receive)


def move_part(
    part: Num[Array, "blocks *block"],
    send: Int[Array, "instances lanes"],
    receive: Int[Array, "instances lanes"],
) -> Num[Array, "blocks *block"]:
    """Copy blocks of one array, data or scales."""
    going = jnp.take(part, send.reshape(-1), axis=0, mode="clip")
    coming = lax.all_to_all(going.reshape(*send.shape, *part.shape[1:]), "instance", 0, 0)
    return write_part(part, coming.reshape(-1, *part.shape[1:]), receive.reshape(-1))


def write_part(
    part: Num[Array, "blocks *block"],
    coming: Num[Array, "lanes *block"],
    targets: Int[Array, " lanes"],
) -> Num[Array, "blocks *block"]:
    """Put blocks into one array; a target past the last block drops its lane."""

    # One block after the other in place: XLA:CPU would widen a whole bfloat16 pool for a scatter.
    def place(lane: Int[Array, ""], part: Array) -> Array:
        target = targets[lane]
        kept = lax.dynamic_index_in_dim(part, target, keepdims=False)
        new = jnp.where(target < part.shape[0], coming[lane], kept)
        return lax.dynamic_update_index_in_dim(part, new, target, 0)

    return lax.fori_loop(0, targets.shape[0], place, part)
