"""ScaleReduce is an exact merge: associative, commutative, with the empty partial as identity."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from pallas_kernels.micro_attention import Partial
from pallas_kernels.scale_reduce import scale_reduce

ROWS, HEAD_DIM, PARTS = 5, 3, 4
TOLERANCE = 1e-5  # float32, values up to 10

merge_all = jax.jit(scale_reduce)

# XLA:CPU flushes subnormal numbers to zero.
floats = st.floats(-10, 10, width=32, allow_subnormal=False)
outs = arrays(np.float32, (PARTS, ROWS, HEAD_DIM), elements=floats)
# Scores of hundreds do occur; a part is often empty, and then its output may be anything.
sums = st.floats(-300, 300, width=32, allow_subnormal=False)
lses = arrays(np.float32, (PARTS, ROWS), elements=sums | st.just(-np.inf))


def poison(outs: np.ndarray, lses: np.ndarray) -> np.ndarray:
    """Put NaN into the outputs of empty parts."""
    return np.where(np.isneginf(lses)[..., None], np.float32(np.nan), outs)


def merge(*parts: Partial) -> Partial:
    return merge_all(jnp.stack([p.out for p in parts]), jnp.stack([p.lse for p in parts]))


def parts_of(outs: np.ndarray, lses: np.ndarray) -> list[Partial]:
    return [
        Partial(jnp.asarray(out), jnp.asarray(lse)) for out, lse in zip(outs, lses, strict=True)
    ]


def assert_close(one: Partial, other: Partial) -> None:
    np.testing.assert_allclose(one.out, other.out, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(one.lse, other.lse, rtol=TOLERANCE, atol=TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(outs=outs, lses=lses)
def test_it_is_associative(outs: np.ndarray, lses: np.ndarray) -> None:
    a, b, c, _ = parts_of(poison(outs, lses), lses)

    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))


@settings(deadline=None, max_examples=40)
@given(outs=outs, lses=lses, order=st.permutations(range(PARTS)))
def test_it_is_commutative(outs: np.ndarray, lses: np.ndarray, order: list[int]) -> None:
    parts = parts_of(poison(outs, lses), lses)

    assert_close(merge(*parts), merge(*(parts[index] for index in order)))


@settings(deadline=None, max_examples=40)
@given(outs=outs, lses=lses)
def test_the_empty_partial_is_an_identity_bit_for_bit(outs: np.ndarray, lses: np.ndarray) -> None:
    part = parts_of(np.where(np.isneginf(lses)[..., None], np.float32(0), outs), lses)[0]
    nothing = Partial(jnp.full((ROWS, HEAD_DIM), jnp.nan), jnp.full((ROWS,), -jnp.inf, jnp.float32))

    for merged in (merge(part, nothing), merge(nothing, part)):
        np.testing.assert_array_equal(merged.out, part.out)
        np.testing.assert_array_equal(merged.lse, part.lse)


def test_only_empties_merge_to_the_empty_partial() -> None:
    nothing = Partial(jnp.full((ROWS, HEAD_DIM), jnp.nan), jnp.full((ROWS,), -jnp.inf, jnp.float32))

    merged = merge(nothing, nothing)

    np.testing.assert_array_equal(merged.out, 0)
    np.testing.assert_array_equal(merged.lse, -np.inf)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_keys=st.integers(0, 12), spread=st.floats(0.1, 100))
def test_merged_parts_equal_attention_over_all_keys(
    seed: int, num_keys: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = spread * rng.normal(size=(num_keys, ROWS))
    values = rng.normal(size=(num_keys, HEAD_DIM))
    owner = rng.integers(0, PARTS, size=num_keys)

    parts = [attend(scores[owner == part], values[owner == part]) for part in range(PARTS)]
    expected = attend(scores, values)
    merged = merge(*parts)

    # Scores of hundreds are known to 2e-5 in float32, and so are their weights.
    np.testing.assert_allclose(merged.out, np.nan_to_num(expected.out), atol=1e-4)
    np.testing.assert_allclose(merged.lse, expected.lse, rtol=TOLERANCE, atol=TOLERANCE)


def test_outputs_keep_their_dtype_and_are_summed_in_float32() -> None:
    # 0.7 * 3 - 0.3 * 7 = 0; with shares or terms rounded to bfloat16 it is 2e-2.
    outs = jnp.array([[[3.0]], [[-7.0]]], jnp.bfloat16)
    merged = scale_reduce(outs, jnp.log(jnp.array([[0.7], [0.3]])))

    assert merged.out.dtype == jnp.bfloat16
    assert merged.lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(merged.out, np.float32), 0, atol=1e-6)


def attend(scores: np.ndarray, values: np.ndarray) -> Partial:
    """Attention of each row over some keys, in float64; NaN where there are none."""
    if not len(scores):
        empty = jnp.full((ROWS, HEAD_DIM), jnp.nan)
        return Partial(empty, jnp.full((ROWS,), -jnp.inf, jnp.float32))
    top = scores.max(axis=0)
    weights = np.exp(scores - top)
    out = weights.T @ values / weights.sum(axis=0)[:, None]
    lse = top + np.log(weights.sum(axis=0))
    return Partial(jnp.asarray(out, jnp.float32), jnp.asarray(lse, jnp.float32))
