"""Every family computes what transformers computes, on one device and split over several.

The golden numbers were made by `make_golden.py`, which says what is in them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distkv_jax.models.checkpoint import LoadedModel, load_model
from distkv_jax.models.convert import convert
from distkv_jax.models.dense import dense_logits
from tests.models.builders import CASES, GOLDEN, make_mesh, read_golden

TOLERANCE = 2e-4


def largest_difference(loaded: LoadedModel, case: str) -> float:
    """Compare all prompts of a case, padded to one length so that one program serves all."""

    @jax.jit
    def logits_of(params: nnx.State, token_ids: jax.Array) -> jax.Array:
        model = nnx.merge(loaded.graphdef, params)
        return jax.vmap(lambda ids: dense_logits(model, ids))(token_ids)

    golden = read_golden(case)
    prompts = [entry.prompt for entry in golden]
    wanted = [entry.logits for entry in golden]
    longest = max(len(prompt) for prompt in prompts)
    rows = np.stack([np.pad(prompt, (0, longest - len(prompt))) for prompt in prompts])
    with jax.default_matmul_precision("highest"):
        given = np.asarray(logits_of(loaded.params, jnp.asarray(rows)))
    return max(
        float(np.abs(got[: len(logits)] - logits).max())
        for got, logits in zip(given, wanted, strict=True)
    )


def test_goldens_are_there():
    assert len(CASES) == 8


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str):
    loaded = load_model(GOLDEN / case, mesh=make_mesh(1, 1), dtype="float32")

    assert largest_difference(loaded, case) < TOLERANCE


@pytest.mark.parametrize(("instance", "tensor"), [(1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("case", ["llama_mqa_bias", "qwen3_norm", "llama3_gqa_tied"])
def test_logits_do_not_depend_on_the_mesh(case: str, instance: int, tensor: int):
    loaded = load_model(GOLDEN / case, mesh=make_mesh(instance, tensor), dtype="float32")

    assert largest_difference(loaded, case) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_an_orbax_conversion_gives_the_same_logits(case: str, tmp_path: Path):
    target = convert(GOLDEN / case, tmp_path / "converted")

    loaded = load_model(target, mesh=make_mesh(2, 2), dtype="float32")

    assert largest_difference(loaded, case) < TOLERANCE


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_conversion_keeps_every_shard(tensor: int, tmp_path: Path):
    """Two KV heads: on 4 devices each is kept twice, by the loader and by the restore."""
    mesh = make_mesh(2, tensor)
    target = convert(GOLDEN / "qwen2_bias", tmp_path / "converted")

    direct = load_model(GOLDEN / "qwen2_bias", mesh=mesh, dtype="float32")
    restored = load_model(target, mesh=mesh, dtype="float32")

    assert restored.config == direct.config
    assert restored.config.kv_replicas == max(1, tensor // 2)
    for one, other in zip(
        jax.tree.leaves(direct.params), jax.tree.leaves(restored.params), strict=True
    ):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)


def test_loading_converts_to_the_asked_dtype():
    mesh = make_mesh(1, 1)

    own = load_model(GOLDEN / "llama_bf16_sharded", mesh=mesh)
    wide = load_model(GOLDEN / "llama_bf16_sharded", mesh=mesh, dtype="float32")

    assert {leaf.dtype for leaf in jax.tree.leaves(own.params)} == {jnp.dtype("bfloat16")}
    for one, other in zip(jax.tree.leaves(own.params), jax.tree.leaves(wide.params), strict=True):
        np.testing.assert_array_equal(one.astype(jnp.float32), other)
