"""A conversion appears whole or not at all, and is refused when damaged."""

import shutil
from pathlib import Path

import jax
import pytest

from distkv_jax.errors import ConfigError
from distkv_jax.models import convert as convert_module
from distkv_jax.models.checkpoint import load_model
from distkv_jax.models.convert import convert
from distkv_jax.models.converted_folder import FORMAT
from tests.models.builders import GOLDEN, copy_checkpoint, make_mesh


def test_small_files_come_along(tmp_path: Path):
    source = copy_checkpoint(tmp_path / "source")
    for name in ("tokenizer_config.json", "generation_config.json"):
        (source / name).write_text('{"temperature": 0.5}')
    (source / "notes.txt").write_text("not ours")

    target = convert(source, tmp_path / "target")

    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "distkv.json",
        "generation_config.json",
        "params",
        "tokenizer_config.json",
    ]
    assert load_model(target, mesh=make_mesh()).sampling == {"temperature": 0.5}


def test_weights_keep_their_type(tmp_path: Path):
    target = convert(GOLDEN / "llama_bf16_sharded", tmp_path / "target")

    loaded = load_model(target, mesh=make_mesh())

    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "target").mkdir()

    with pytest.raises(ConfigError, match="target exists, convert does not overwrite"):
        convert(GOLDEN / "llama_mha", tmp_path / "target")


def test_a_missing_parent_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="no is not a folder, convert does not create it"):
        convert(GOLDEN / "llama_mha", tmp_path / "no" / "target")


def test_a_conversion_is_not_converted_again(tmp_path: Path):
    target = convert(GOLDEN / "llama_mha", tmp_path / "target")

    with pytest.raises(ConfigError, match="is already an orbax checkpoint"):
        convert(target, tmp_path / "again")


@pytest.mark.parametrize("failing", ["load_weights", "save_params"])
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(convert_module, failing, fail)

    with pytest.raises(OSError, match="disk full"):
        convert(GOLDEN / "llama_mha", tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    return convert(GOLDEN / "llama_mha", tmp_path / "converted")


def test_another_format_is_refused(converted: Path):
    (converted / "distkv.json").write_text('{"format": "orbax, 0"}')

    with pytest.raises(
        ConfigError, match=f"has format 'orbax, 0', this version reads '{FORMAT[:9]}"
    ):
        load_model(converted, mesh=make_mesh())


def test_a_config_that_is_not_the_weights_is_refused(converted: Path, tmp_path: Path):
    other = copy_checkpoint(tmp_path / "other", settings={"intermediate_size": 64})
    shutil.copy(other / "config.json", converted / "config.json")

    with pytest.raises(ConfigError, match=r"has shape \(\d+, \d+\), config.json asks for"):
        load_model(converted, mesh=make_mesh())


@pytest.mark.parametrize("victim", ["params", "params/d", "params/ocdbt.process_0"])
def test_missing_files_are_named(converted: Path, victim: str):
    shutil.rmtree(converted / victim)

    with pytest.raises(ConfigError, match=f"{victim}/.* is missing"):
        load_model(converted, mesh=make_mesh())


def test_a_truncated_file_is_told_with_its_size(converted: Path):
    path = converted / "params" / "_METADATA"
    path.write_bytes(path.read_bytes()[:10])

    with pytest.raises(ConfigError, match=r"_METADATA is damaged: it has 10 bytes, expected \d+"):
        load_model(converted, mesh=make_mesh())


def test_other_damage_is_told(converted: Path):
    path = converted / "params" / "_METADATA"
    path.write_bytes(b"x" * path.stat().st_size)

    with pytest.raises(ConfigError, match="params is damaged"):
        load_model(converted, mesh=make_mesh())
