"""A partial arrives on the other side bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from distkv_jax.attention.wire import pack, unpack
from pallas_kernels.micro_attention import Partial

# The lse in float32, to the last bit, at the ends of its range and where there is none.
LSES = np.array([[-np.inf, 0.0, -0.0], [1 + 2**-23, 3e38, -1e-38]], np.float32)
HEAD_DIM = 6


@pytest.mark.parametrize(
    ("dtype", "lanes"), [(jnp.float32, 1), (jnp.bfloat16, 2), (jnp.float16, 2)]
)
def test_a_partial_survives_the_wire(dtype: DTypeLike, lanes: int) -> None:
    rng = np.random.default_rng(0)
    out = jnp.asarray(rng.normal(size=(*LSES.shape, HEAD_DIM)), dtype)

    packed = pack(Partial(out, jnp.asarray(LSES)))
    arrived = unpack(packed, HEAD_DIM)

    assert packed.shape == (*LSES.shape, HEAD_DIM + lanes)
    assert packed.dtype == arrived.out.dtype == dtype
    assert arrived.lse.dtype == jnp.float32
    np.testing.assert_array_equal(arrived.out, out)
    np.testing.assert_array_equal(np.asarray(arrived.lse).view(np.int32), LSES.view(np.int32))
