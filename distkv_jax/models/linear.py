"""The one dense projection, and how its matrix lies in memory."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from distkv_jax.models import initial


class Linear(nnx.Module):
    """A projection whose matrix is stored as [in, out], the transpose of a checkpoint's."""

    def __init__(
        self, in_size: int, out_size: int, *, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs | None
    ) -> None:
        self.kernel = initial.normal((in_size, out_size), dtype, rngs)
        self.has_bias = bias
        if bias:
            self.bias = initial.constant(0.0, (out_size,), dtype, rngs)

    def __call__(
        self, x: Float[Array, "rows in_size"], *, out_dtype: DTypeLike | None = None
    ) -> Float[Array, "rows out_size"]:
        """Project rows; the result has x's dtype unless `out_dtype` is given."""
        # Asked for bfloat16, XLA:CPU first copies the whole matrix to float32: ten times slower.
        y = jnp.matmul(x, self.kernel[...], preferred_element_type=jnp.float32)
        y = y.astype(out_dtype or x.dtype)
        return y + self.bias[...][None, :] if self.has_bias else y
