"""Which dtypes the native kernels take."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_pool import query_dtype

ACTIVATIONS = (np.dtype(np.float32), np.dtype(jnp.bfloat16))
"""Of queries, and of keys and values before they are written."""

POOLS = (*ACTIVATIONS, np.dtype(np.int8), np.dtype(jnp.float8_e4m3fn))
"""Of a pool's data."""


def takes(q_dtype: np.dtype, kv_dtype: np.dtype) -> bool:
    """Whether queries of one dtype can attend to a pool of another."""
    q_dtype, kv_dtype = np.dtype(q_dtype), np.dtype(kv_dtype)
    is_known = q_dtype in ACTIVATIONS and kv_dtype in POOLS
    return is_known and query_dtype(q_dtype, kv_dtype) == q_dtype


def names(dtypes: tuple[np.dtype, ...]) -> str:
    """Write dtypes for a message."""
    return ", ".join(map(str, dtypes))
