"""Pools have the dtype that suits weights and platform, or the one asked for, and sizes add up."""

import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.pool_spec import PoolSpec, kv_dtype
from distkv_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "weights", "platform", "expected"),
    [
        ("auto", "float32", "cpu", "float32"),
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "bfloat16", "tpu", "bfloat16"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
        ("int8", "bfloat16", "gpu", "int8"),
        ("fp8", "bfloat16", "tpu", "float8_e4m3fn"),
    ],
)
def test_the_pools_dtype(asked: str, weights: str, platform: str, expected: str) -> None:
    config = EngineConfig(kv_cache_dtype=asked)  # pyright: ignore[reportArgumentType] (parametrised)

    assert kv_dtype(config, np.dtype(jnp.dtype(weights)), platform) == jnp.dtype(expected)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="kv_cache_dtype='int3' must be one of auto, float32, bfloat16, float16, int8, fp8",
    ):
        EngineConfig(kv_cache_dtype="int3")  # pyright: ignore[reportArgumentType] (wrong on purpose)


SPEC = PoolSpec(
    num_layers=3, num_blocks=5, kv_heads=2, block_size=8, head_dim=4, dtype=np.dtype(np.float32)
)


def test_a_blocks_bytes_are_keys_and_values_of_all_layers_and_heads() -> None:
    assert SPEC.block_bytes == 3 * 2 * 2 * 8 * 4 * 4
    assert SPEC.shape(3) == (15, 2, 2, 8, 4)


@pytest.mark.parametrize("dtype", [np.int8, jnp.float8_e4m3fn])
def test_quantised_vectors_are_a_byte_a_number_and_a_scale(dtype: type) -> None:
    assert SPEC._replace(dtype=np.dtype(dtype)).block_bytes == 3 * 2 * 2 * 8 * (4 + 4)
