"""ScaleReduce: the exact merge of partial attention results.

Source: Infinite-LLM, DistAttention, arXiv 2401.02669; the wire form (normalised output, lse) is
FlashAttention's, arXiv 2205.14135.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.micro_attention.partial import Partial


def scale_reduce(
    outs: Float[Array, "parts *rows head_dim"], lses: Float[Array, "parts *rows"]
) -> Partial:
    """Merge partials over their leading axis; any order gives the same attention.

    Args:
        outs: Normalised outputs; a part whose lse is -inf may hold anything, NaN included.
        lses: Natural log-sum-exps, float32.

    Returns:
        The partial over the union of the keys, empty (0, -inf) where every part is empty.
    """
    top = jnp.max(lses, axis=0)
    floor = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(lses - floor[None])
    total = jnp.sum(weights, axis=0)
    share = weights / jnp.where(total == 0, 1.0, total)[None]
    terms = jnp.where(share[..., None] == 0, 0.0, outs.astype(jnp.float32) * share[..., None])
    lse = jnp.where(total == 0, -jnp.inf, floor + jnp.log(jnp.where(total == 0, 1.0, total)))
    return Partial(jnp.sum(terms, axis=0).astype(outs.dtype), lse)
