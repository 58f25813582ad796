"""Writing a layer's new keys and values into this instance's pool, heads split over `tensor`."""

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.kv_write import kv_write
from pallas_kernels.micro_attention.cpu import kv_write_cpu


def write_kv(
    pool: KVPool,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    blocks: Int[Array, " tokens"],
    slots: Int[Array, " tokens"],
    *,
    implementation: str | None = None,
) -> KVPool:
    """Write where the tokens were computed. Donate the pool, the result replaces it.

    With MicroAttention's implementation "cpu" the native kernel writes, everywhere else XLA: on CPU
    it would widen a whole bfloat16 pool at every write.

    Manual over `tensor`, so that every device writes its own heads and nothing is exchanged.
    """
    heads, pool_heads = P(None, "tensor"), P(None, None, "tensor")
    with jax.named_scope("kv_write"):
        return jax.shard_map(
            kv_write_cpu if implementation == "cpu" else kv_write,
            in_specs=(pool_heads, heads, heads, P(), P()),
            out_specs=pool_heads,
            axis_names={"tensor"},
            check_vma=False,
        )(pool, k, v, blocks, slots)
