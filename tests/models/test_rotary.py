"""Rotations are right to a millionth at any position, and keep what attention needs of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.models.rope import RopeScaling, inverse_frequencies
from distkv_jax.models.rotary import MAX_POSITION, rotary_of, rotate

POSITIONS = [0, 1, 4095, 4096, 65_537, 1_000_001, 2_000_000, 2_097_151, MAX_POSITION - 1]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_angles_are_exact_at_any_position(theta: float):
    inverse = inverse_frequencies(64, theta, None)

    rotary = jax.jit(lambda positions: rotary_of(positions, inverse))(jnp.asarray(POSITIONS))

    angle = np.outer(np.asarray(POSITIONS, np.float64), inverse.astype(np.float64))
    np.testing.assert_allclose(rotary.cos, np.cos(angle), atol=2e-6)
    np.testing.assert_allclose(rotary.sin, np.sin(angle), atol=2e-6)


def test_scores_depend_on_distance_only():
    inverse = inverse_frequencies(8, 10000.0, None)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))

    def score(position: int) -> float:
        here, there = (rotary_of(jnp.asarray([p]), inverse) for p in (position, position - 7))
        return float(jnp.sum(rotate(q, here) * rotate(k, there)))

    assert score(7) == pytest.approx(score(1_999_999), abs=1e-5)


def test_rotation_is_of_halves_and_keeps_the_type():
    x = jnp.ones((1, 2, 4), jnp.bfloat16)
    quarter = rotary_of(jnp.asarray([1]), np.asarray([np.pi / 2, 0.0], np.float32))

    turned = rotate(x, quarter)

    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(turned[0, 0].astype(jnp.float32), [-1, 1, 1, 1], atol=1e-6)


def test_linear_scaling_divides_positions():
    plain = inverse_frequencies(8, 10000.0, None)
    scaled = inverse_frequencies(8, 10000.0, RopeScaling(kind="linear", factor=4.0))

    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-6)


def test_attention_factor_scales_both():
    inverse = inverse_frequencies(8, 10000.0, None)

    plain, scaled = (rotary_of(jnp.asarray([3]), inverse, factor) for factor in (1.0, 1.5))

    np.testing.assert_allclose(scaled.cos, plain.cos * np.float32(1.5), rtol=1e-6)
    np.testing.assert_allclose(scaled.sin, plain.sin * np.float32(1.5), rtol=1e-6)
