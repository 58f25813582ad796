"""Keys and values get the dtype that suits weights and platform, or the one asked for."""

import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.engine.build import kv_dtype
from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "weights", "platform", "expected"),
    [
        ("auto", "float32", "cpu", "float32"),
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "bfloat16", "tpu", "bfloat16"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
    ],
)
def test_the_pools_dtype(asked: str, weights: str, platform: str, expected: str) -> None:
    config = EngineConfig(kv_cache_dtype=asked)  # pyright: ignore[reportArgumentType] (parametrised)

    assert kv_dtype(config, np.dtype(jnp.dtype(weights)), platform) == jnp.dtype(expected)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="kv_cache_dtype='int3' must be one of auto, float32, bfloat16, float16",
    ):
        EngineConfig(kv_cache_dtype="int3")  # pyright: ignore[reportArgumentType] (wrong on purpose)
