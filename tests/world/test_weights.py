"""An instance with other weights is found before it serves, and named with its parameter."""

import jax
import numpy as np
import pytest
from flax import nnx

from distkv_jax.errors import ConfigError
from distkv_jax.mesh import sharding
from distkv_jax.world.weights import check_weights
from tests.engine.builders import make_runner
from tests.models.builders import make_mesh

MESH = make_mesh(2, 1)


def params_with(name: str, second: np.ndarray, first: np.ndarray) -> nnx.State:
    """One parameter, `second` on instance 1."""
    copies = [
        jax.device_put(array, device)
        for array, device in zip((first, second), MESH.devices.flat, strict=True)
    ]
    array = jax.make_array_from_single_device_arrays(first.shape, sharding(MESH), copies)
    return nnx.from_flat_state([(("layers", 0, name, "kernel"), nnx.Param(array))])


def test_equal_weights_pass_on_every_mesh() -> None:
    for instance, tensor in ((1, 1), (2, 1), (2, 2)):
        runner = make_runner(instance, tensor)
        check_weights(runner._to_params(runner._params), runner.mesh)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_flipped_bit_is_found(dtype: type) -> None:
    first = np.random.default_rng(0).normal(size=(8, 8)).astype(dtype)
    second = first.copy()
    second.view(np.uint8)[3, 5] ^= 1

    with pytest.raises(ConfigError, match=r"process 0 has other weights .* in layers\.0\.q"):
        check_weights(params_with("q", second, first), MESH)


def test_weights_that_changed_places_are_found() -> None:
    first = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    for second in (first[::-1].copy(), first[:, ::-1].copy(), first.T.copy()):
        with pytest.raises(ConfigError, match="other weights"):
            check_weights(params_with("q", second, first), MESH)
