"""What a new parameter holds: random numbers, a constant, or no more than its shape."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

STD = 0.02


def normal(shape: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs | None) -> nnx.Param:
    """Make a parameter of random numbers; without `rngs` only of a shape."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    return nnx.Param(STD * jax.random.normal(rngs.params(), shape, dtype))


def constant(
    value: float, shape: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs | None
) -> nnx.Param:
    """Make a parameter that starts as one number; without `rngs` only of a shape."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    return nnx.Param(jnp.full(shape, value, dtype))
