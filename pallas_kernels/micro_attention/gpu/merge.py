"""Merge the pieces of segments that more than one worker had a part in."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.micro_attention.gpu.plan import Plan
from pallas_kernels.micro_attention.gpu.sizes import Sizes
from pallas_kernels.micro_attention.partial import Partial


def merge_pieces(
    outs: Float[Array, "places chunk head_dim"],
    lses: Float[Array, "places chunk"],
    plan: Plan,
    sizes: Sizes,
) -> Partial:
    """Put every segment together; ScaleReduce over a worker's spare places, by matrix products.

    A segment that spans workers begins in one worker only and goes on past its end, so there is at
    most one for each worker. Which pieces are whose is known from the plan; plain XLA, and always
    in the same order.

    Returns:
        Output (float32) and lse by tile, KV head and query row; (0, -inf) where no row has steps.
    """
    begins, ends, _ = plan.workers.T
    before, after = plan.starts[:-1], plan.starts[1:]
    # The first spare place holds the end of a segment, or its middle; the second one its beginning.
    segment = jnp.stack([before, after], axis=1).reshape(-1)
    has_first = (before < begins) & (begins < ends)
    goes_on = (after < ends) & (after >= begins)
    holds = jnp.stack([has_first, goes_on], axis=1).reshape(-1)
    is_of = (segment[None] == after[:, None]) & holds[None] & goes_on[:, None]

    spare_lse = lses[sizes.num_segments :]
    weights_lse = jnp.where(is_of[..., None], spare_lse[None], -jnp.inf)
    top = jnp.max(weights_lse, axis=1)
    floor = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(weights_lse - floor[:, None])
    total = jnp.sum(weights, axis=1)
    safe = jnp.where(total == 0, 1.0, total)
    # Places that hold nothing can hold anything, and 0 * NaN is NaN.
    spare = jnp.where(holds[:, None, None], outs[sizes.num_segments :], 0.0)
    share = weights / safe[:, None]
    out = jnp.einsum("wsq,sqd->wqd", share, spare, precision=lax.Precision.HIGHEST)
    lse = jnp.where(total == 0, -jnp.inf, floor + jnp.log(safe))

    place = jnp.where(goes_on, plan.segments[1:], sizes.num_segments)
    out = outs[: sizes.num_segments].at[place].set(out, mode="drop")
    lse = lses[: sizes.num_segments].at[place].set(lse, mode="drop")
    by_tile = (sizes.tiles, sizes.kv_heads, sizes.chunks * sizes.chunk)
    written = plan.is_written[:, None, None]
    return Partial(
        jnp.where(written[..., None], out.reshape(*by_tile, sizes.head_dim), 0.0),
        jnp.where(written, lse.reshape(by_tile), -jnp.inf),
    )
