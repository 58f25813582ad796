"""Where it cannot run, the Triton implementation says what is missing."""

import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.micro_attention import micro_attention
from tests.pallas_kernels.test_micro_attention import DECODE, SCALE, make_case


@pytest.mark.parametrize("module", ["jax_triton", "triton"])
def test_a_missing_package_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pallas_kernels.micro_attention.triton.kernel", raising=False)
    arrays = jax.tree.map(jnp.asarray, make_case("xla", DECODE, tile=1, heads=(2, 1)).arrays)

    with pytest.raises(
        RuntimeError,
        match=r"implementation 'triton' needs .*: install distkv-jax\[triton\] \(.*triton",
    ):
        micro_attention(*arrays, scale=SCALE, implementation="triton")
