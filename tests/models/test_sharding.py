"""One table says how each parameter is split, and every parameter is in it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distkv_jax.models.checkpoint import load_model
from distkv_jax.models.model_folder import read_config
from distkv_jax.models.sharding import abstract_decoder, param_shardings, spec_of, weight_bytes
from distkv_jax.models.weight_names import flat_params
from tests.models.builders import CASES, GOLDEN, make_mesh


def test_a_layer_is_split_by_columns_then_by_rows():
    layer = ("layers", 0, "mlp")

    assert spec_of((*layer, "up_proj", "kernel"), (32, 48), 2) == P(None, "tensor")
    assert spec_of((*layer, "up_proj", "bias"), (48,), 2) == P("tensor")
    assert spec_of((*layer, "down_proj", "kernel"), (48, 32), 2) == P("tensor", None)
    assert spec_of((*layer, "down_proj", "bias"), (32,), 2) == P(None)


def test_what_does_not_divide_is_kept_whole():
    assert spec_of(("lm_head", "kernel"), (32, 130), 4) == P(None, None)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_of_every_family_has_a_place(case: str):
    mesh = make_mesh(1, 2)
    params = abstract_decoder(read_config(GOLDEN / case).for_tensor(2), "float32").params

    shardings = param_shardings(params, mesh)

    assert set(shardings) == {path for path, _ in flat_params(params)}


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_weight_bytes_are_those_of_a_device(tensor: int):
    loaded = load_model(GOLDEN / "llama_mqa_bias", mesh=make_mesh(2, tensor))

    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(loaded.params))

    assert weight_bytes(read_config(GOLDEN / "llama_mqa_bias"), "float32", tensor) == held


def test_building_the_structure_allocates_nothing():
    config = read_config(GOLDEN / "llama_mha")
    huge = dataclasses.replace(config, hidden_size=2**20, intermediate_size=2**22)

    params = abstract_decoder(huge, np.dtype("float32")).params

    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
