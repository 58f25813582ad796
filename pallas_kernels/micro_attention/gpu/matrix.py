"""The matrix work of one warpgroup, on Hopper's matrix units or, interpreted, as plain dots.

Everything that JAX's GPU interpreter cannot do is here, so that the rest of the kernel is the same
for both.
"""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

Ref = Any
"""A reference in a kernel: JAX gives its views no common type that can be named."""

SomeLayout = Any
"""A layout of registers, or a reduction of one: these too."""

MATRIX = plgpu.Layout.WGMMA
PER_ROW = MATRIX.reduce(1)
PER_COLUMN = MATRIX.reduce(0)
"""How a warpgroup's registers hold a matrix, and a number for each of its rows or columns."""


@runtime_checkable
@runtime_checkable
class Matrix(Protocol):
    """What differs between a GPU and its interpretation."""

    def lay(self, x: Array, layout: SomeLayout) -> Array:
        """Say how registers hold an array."""
        ...

    def scores(self, queries: Ref, keys: Ref) -> Float[Array, "queries tokens"]:
        """Multiply queries with keys, both in shared memory."""
        ...

    def weigh(
        self,
        acc: Float[Array, "queries head_dim"],
        weights: Float[Array, "queries tokens"],
        values: Ref,
    ) -> Float[Array, "queries head_dim"]:
        """Add weights (in the queries' dtype) times values, which are in shared memory."""
        ...


class Hopper:
    """Warpgroup matrix multiplication (wgmma)."""

    def lay(self, x: Array, layout: SomeLayout) -> Array:
        """Say how registers hold an array."""
        return plgpu.layout_cast(x, layout)

    def scores(self, queries: Ref, keys: Ref) -> Float[Array, "queries tokens"]:
        """Multiply queries with keys, both in shared memory."""

        def multiply(acc: Ref) -> Array:
            plgpu.wgmma(acc, queries, plgpu.transpose_ref(keys, (1, 0)))
            return acc[...]

        shape = (queries.shape[0], keys.shape[0])
        return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))

    def weigh(
        self,
        acc: Float[Array, "queries head_dim"],
        weights: Float[Array, "queries tokens"],
        values: Ref,
    ) -> Float[Array, "queries head_dim"]:
        """Add weights (in the queries' dtype) times values, which are in shared memory."""

        def multiply(acc: Ref) -> None:
            plgpu.wgmma(acc, weights, values)

        run: Any = pl.run_state(multiply)  # Typed as giving back what it takes, a reference.
        return run(plgpu.WGMMAAccumulatorRef.init(acc))


class Interpreted:
    """Plain dots, for any dtype."""

    def lay(self, x: Array, layout: SomeLayout) -> Array:
        """Leave an array as it is."""
        del layout
        return x

    def scores(self, queries: Ref, keys: Ref) -> Float[Array, "queries tokens"]:
        """Multiply queries with keys, both in shared memory."""
        q = queries[...]
        k = keys[...].astype(q.dtype)
        return lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    def weigh(
        self,
        acc: Float[Array, "queries head_dim"],
        weights: Float[Array, "queries tokens"],
        values: Ref,
    ) -> Float[Array, "queries head_dim"]:
        """Add weights (in the queries' dtype) times values, which are in shared memory."""
        v = values[...].astype(weights.dtype)
        numbers = (((1,), (0,)), ((), ()))
        return acc + lax.dot_general(weights, v, numbers, preferred_element_type=jnp.float32)


def iota(
    matrix: Matrix, shape: tuple[int, ...], axis: int, layout: SomeLayout
) -> Int[Array, "..."]:
    """Count along an axis."""
    return matrix.lay(lax.broadcasted_iota(jnp.int32, shape, axis), layout)


def full(
    matrix: Matrix, shape: tuple[int, ...], value: float, layout: SomeLayout
) -> Float[Array, "..."]:
    """Fill registers with a number."""
    return matrix.lay(jnp.full(shape, value, jnp.float32), layout)
