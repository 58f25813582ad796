"""Quantised vectors keep what their dtype can hold, each by itself, whatever its size."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pallas_kernels.kv_pool import empty_pool, quantise, query_dtype

INT8, FP8 = np.dtype(np.int8), np.dtype(jnp.float8_e4m3fn)

LARGEST = 2.0**127
# Scales below float32's smallest normal number are flushed to zero, and their vectors with them.
FLUSHED = 448 * float(np.finfo(np.float32).tiny)

vectors = npst.arrays(
    np.float32, (3, 4), elements=st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=False)
)


@settings(deadline=None)  # the first example compiles
@given(vectors)
def test_int8_is_off_by_at_most_half_a_scale(x: np.ndarray) -> None:
    data, scales = quantise(jnp.asarray(x), INT8)
    scales = np.asarray(scales, np.float64)

    error = np.abs(np.asarray(data, np.float64) * scales[:, None] - x)

    # 1e-5 of half a scale: the scale and the ratio are rounded to float32 once each.
    assert np.all(error <= scales[:, None] * 0.5 * (1 + 1e-5) + FLUSHED)
    largest = np.abs(x).max(axis=1)
    assert np.all(np.abs(scales * 127 - largest) <= 1e-6 * largest + FLUSHED)


@settings(deadline=None)  # the first example compiles
@given(vectors)
def test_fp8_is_off_by_at_most_a_sixteenth(x: np.ndarray) -> None:
    data, scales = quantise(jnp.asarray(x), FP8)
    scales = np.asarray(scales, np.float64)[:, None]

    error = np.abs(np.asarray(data, np.float64) * scales - x)

    # Three bits of mantissa; below 2^-6 steps are 2^-9 wide.
    assert np.all(
        error <= np.maximum(np.abs(x) * 2.0**-4, scales * 2.0**-10) * (1 + 1e-5) + FLUSHED
    )


@pytest.mark.parametrize("dtype", [INT8, FP8], ids=str)
def test_a_vector_of_zeros_stays_one(dtype: np.dtype) -> None:
    data, scales = quantise(jnp.zeros((2, 4)), dtype)

    np.testing.assert_array_equal(np.asarray(data, np.float32), 0)
    np.testing.assert_array_equal(scales, 0)


@pytest.mark.parametrize("dtype", [INT8, FP8], ids=str)
def test_the_smallest_numbers_stay_finite(dtype: np.dtype) -> None:
    tiny = np.finfo(np.float32).tiny
    data, scales = quantise(jnp.asarray([[tiny, -tiny], [tiny * 8, 0]]), dtype)

    assert np.all(np.isfinite(np.asarray(data, np.float32)))
    assert np.all(np.isfinite(scales))


@pytest.mark.parametrize("dtype", [INT8, FP8], ids=str)
def test_a_vectors_numbers_do_not_depend_on_its_neighbours(dtype: np.dtype) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    together = quantise(x, dtype)
    alone = [quantise(x[i : i + 1] * 1, dtype) for i in range(6)]

    np.testing.assert_array_equal(
        np.asarray(together[0], np.float32),
        np.concatenate([np.asarray(data, np.float32) for data, _ in alone]),
    )
    np.testing.assert_array_equal(together[1], np.concatenate([scale for _, scale in alone]))


def test_an_empty_pool_has_scales_only_where_they_are_needed() -> None:
    shape = (3, 2, 1, 4, 8)

    assert empty_pool(shape, np.dtype(np.float32)).scales is None
    pool = empty_pool(shape, INT8)
    assert pool.data.dtype == INT8
    assert pool.scales is not None
    assert pool.scales.shape == shape[:-1]


@pytest.mark.parametrize(
    ("activations", "data", "expected"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float16", "float32"),
        ("bfloat16", "int8", "bfloat16"),
        ("float32", "float8_e4m3fn", "float32"),
    ],
)
def test_queries_are_never_narrower_than_plain_keys(
    activations: str, data: str, expected: str
) -> None:
    chosen = query_dtype(np.dtype(jnp.dtype(activations)), np.dtype(jnp.dtype(data)))

    assert chosen == jnp.dtype(expected)
