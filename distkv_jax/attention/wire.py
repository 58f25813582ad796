"""How partials travel between instances: one array, so that one collective carries them.

The output keeps the model's dtype; the lse is float32 always and rides in the last lanes of each
row, bit for bit (a bfloat16 lse would cost 1e-2 of accuracy).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.micro_attention import Partial


def pack(partial: Partial) -> Float[Array, "*rows lanes"]:
    """Put each lse behind its output."""
    out, lse = partial
    bits = lax.bitcast_convert_type(lse, out.dtype)
    lanes = bits[..., None] if bits.ndim == lse.ndim else bits
    return jnp.concatenate([out, lanes], axis=-1)


def unpack(packed: Float[Array, "*rows lanes"], head_dim: int) -> Partial:
    """Undo `pack`."""
    lanes = packed[..., head_dim:]
    bits = lanes[..., 0] if lanes.shape[-1] == 1 else lanes
    return Partial(packed[..., :head_dim], lax.bitcast_convert_type(bits, jnp.float32))
