"""The pool of one layer on one device, and how keys and values are quantised in it.

Quantised keys and values have one float32 scale per token, KV head and K or V. A token's numbers
depend on that token alone, so results do not depend on how a prompt is cut into chunks, and a block
moves as it is, scales included.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

QUANTISED = {np.dtype(np.int8): 127.0, np.dtype(jnp.float8_e4m3fn): 448.0}
"""Dtypes of quantised data, with the magnitude that the largest number of a vector gets."""

SCALE_BYTES = 4
"""Of one scale."""


class KVPool(NamedTuple):
    """Keys and values of every block of one layer on one device.

    K and V of a block lie side by side, so one transfer brings both for all heads; each head's keys
    are one contiguous matrix of (block_size, head_dim), which is what matrix units want: with
    head_dim 128 it is whole tiles of a TPU.

    Attributes:
        data: K (0) and V (1) of every block: float32, bfloat16, float16, or a dtype of `QUANTISED`.
        scales: Value = data * scale; None where data is not quantised.
    """

    data: Num[Array, "blocks 2 kv_heads block_size head_dim"]
    scales: Float[Array, "blocks 2 kv_heads block_size"] | None = None

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.data.shape[3]


def is_quantised(dtype: np.dtype) -> bool:
    """Whether data of a dtype goes with scales."""
    return np.dtype(dtype) in QUANTISED


def query_dtype(activations: np.dtype, data: np.dtype) -> np.dtype:
    """Choose the dtype of queries: the activations', but never narrower than plain keys."""
    if is_quantised(data) or data == activations:
        return activations
    if data.itemsize == activations.itemsize:  # bfloat16 and float16: neither holds the other
        return np.dtype(np.float32)
    return max(data, activations, key=lambda dtype: dtype.itemsize)


def empty_pool(shape: tuple[int, ...], dtype: np.dtype) -> KVPool:
    """Make a pool of zeros, with scales where the dtype wants them.

    Args:
        shape: (blocks, 2, kv_heads, block_size, head_dim).
        dtype: Of the data.
    """
    scales = jnp.zeros(shape[:-1], jnp.float32) if is_quantised(dtype) else None
    return KVPool(jnp.zeros(shape, dtype), scales)


def quantise(
    x: Float[Array, "*vectors head_dim"], dtype: np.dtype
) -> tuple[Num[Array, "*vectors head_dim"], Float[Array, "*vectors"]]:
    """Quantise each vector by itself: its largest magnitude becomes the dtype's limit.

    int8 is off by at most half a scale; float8_e4m3fn by 2**-4 of the number, or, next to nothing,
    2**-10 scales.

    Args:
        x: Vectors, finite.
        dtype: A key of `QUANTISED`.

    Returns:
        The data, and the scale of each vector; a vector of zeros has data and scale 0.
    """
    limit = QUANTISED[np.dtype(dtype)]
    x = x.astype(jnp.float32)
    # Times the reciprocal: compilers turn some divisions by a constant into that, and not others.
    scales = jnp.max(jnp.abs(x), axis=-1) * np.float32(1 / limit)
    ratio = x / jnp.where(scales == 0, 1.0, scales)[..., None]
    if np.dtype(dtype) == np.int8:
        ratio = jnp.round(ratio)
    # A subnormal scale is rounded coarsely; the clip keeps what it makes of it within the dtype.
    return jnp.clip(ratio, -limit, limit).astype(dtype), scales
