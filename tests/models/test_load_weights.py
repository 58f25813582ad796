"""Weights reach their shards slice by slice, and a wrong checkpoint is named before any does."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from distkv_jax.errors import ConfigError
from distkv_jax.models.checkpoint import load_model
from distkv_jax.models.safetensors_folder import INDEX, SafetensorsFolder
from distkv_jax.models.sharding import weight_bytes
from tests.models.builders import GOLDEN, copy_checkpoint, make_mesh

UP = "model.layers.1.mlp.up_proj.weight"


def test_no_more_than_a_shard_is_read_at_once(monkeypatch: pytest.MonkeyPatch):
    read = SafetensorsFolder.read
    sizes: dict[str, list[int]] = {}

    def counting(self: SafetensorsFolder, name: str, index: tuple[slice, ...]) -> np.ndarray:
        part = read(self, name, index)
        sizes.setdefault(name, []).append(part.size)
        return part

    monkeypatch.setattr(SafetensorsFolder, "read", counting)

    load_model(GOLDEN / "llama_mha", mesh=make_mesh(2, 4))

    assert sizes[UP] == [32 * 48 // 4] * 4  # once per shard, for both instances
    assert sizes["model.norm.weight"] == [32]
    assert sizes["model.embed_tokens.weight"] == [128 * 32 // 4] * 4


def test_every_instance_holds_every_weight_and_a_device_its_part():
    loaded = load_model(GOLDEN / "llama_mha", mesh=make_mesh(2, 2))

    kernel = loaded.params["layers"][0]["self_attn"]["q_proj"]["kernel"][...]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(32, 16)] * 4
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "tensor")


def test_a_vocabulary_that_does_not_divide_is_kept_whole():
    loaded = load_model(GOLDEN / "llama_mqa_bias", mesh=make_mesh(1, 4))

    assert loaded.params["embed_tokens"]["weight"][...].sharding.is_fully_replicated


def test_progress_ends_at_the_total():
    told: list[tuple[int, int]] = []

    loaded = load_model(
        GOLDEN / "llama_mha", mesh=make_mesh(), progress=lambda *at: told.append(at)
    )

    total = weight_bytes(loaded.config, "float32", tensor=1)
    assert len(told) == 21
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_derived_and_tied_tensors_are_ignored(tmp_path: Path):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    folder = copy_checkpoint(tmp_path / "tied", change, {"tie_word_embeddings": True})

    loaded = load_model(folder, mesh=make_mesh())

    assert "lm_head" not in loaded.params


def test_missing_tensors_are_named(tmp_path: Path):
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[UP]

    folder = copy_checkpoint(tmp_path / "model", change)

    with pytest.raises(ConfigError, match=f"checkpoint lacks 1 tensors: {UP}"):
        load_model(folder, mesh=make_mesh())


def test_unexpected_tensors_are_named(tmp_path: Path):
    def change(tensors: dict[str, np.ndarray]) -> None:
        for number in range(5):
            tensors[f"model.extra.{number}"] = np.ones(4, np.float32)

    folder = copy_checkpoint(tmp_path / "model", change)

    with pytest.raises(ConfigError, match="5 unexpected tensors: model.extra.0.* and 1 more"):
        load_model(folder, mesh=make_mesh())


def test_a_wrong_shape_is_told_with_the_right_one(tmp_path: Path):
    folder = copy_checkpoint(tmp_path / "model", settings={"intermediate_size": 64})

    with pytest.raises(ConfigError, match=r"has shape \(\d+, \d+\), config.json asks for \(\d+, "):
        load_model(folder, mesh=make_mesh())


def test_integers_are_no_weights(tmp_path: Path):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[UP] = tensors[UP].astype(np.int8)

    folder = copy_checkpoint(tmp_path / "model", change)

    with pytest.raises(ConfigError, match=f"{UP} has dtype I8, supported: F32, F16, BF16, F64"):
        load_model(folder, mesh=make_mesh())


@pytest.mark.parametrize("num_bytes", [0, 5, 200, 5000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, num_bytes: int):
    folder = copy_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])

    with pytest.raises(ConfigError, match="model.safetensors is damaged"):
        load_model(folder, mesh=make_mesh())


def test_no_weights_at_all_is_told(tmp_path: Path):
    folder = copy_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()

    with pytest.raises(ConfigError, match="has neither model.safetensors nor model.safetensors.in"):
        load_model(folder, mesh=make_mesh())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "llama_bf16_sharded", tmp_path / "sharded"))


def test_a_missing_file_of_several_is_named(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(ConfigError, match="model-00002-of-00002.safetensors is missing"):
        load_model(sharded, mesh=make_mesh())


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(sharded: Path, content: str):
    (sharded / INDEX).write_text(content)

    with pytest.raises(ConfigError, match="index.json (is damaged|cannot be read|must hold)"):
        load_model(sharded, mesh=make_mesh())


def test_an_index_cannot_point_out_of_its_folder(sharded: Path):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][UP] = "../model.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))

    with pytest.raises(
        ConfigError, match=r"names '\.\./model.safetensors', expected a file of the"
    ):
        load_model(sharded, mesh=make_mesh())


def test_an_index_that_is_wrong_about_a_tensor_is_refused(sharded: Path):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    files = set(index["weight_map"].values())
    index["weight_map"] |= {"model.phantom.weight": files.pop()}
    (sharded / INDEX).write_text(json.dumps(index))

    with pytest.raises(ConfigError, match="which does not have it"):
        load_model(sharded, mesh=make_mesh())
