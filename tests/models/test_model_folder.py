"""A model that is not there is refused with what was looked for; nothing is downloaded."""

from pathlib import Path

import pytest

import distkv_jax.models
from distkv_jax.errors import ConfigError
from distkv_jax.models.model_folder import find_model, read_config, read_sampling_defaults
from tests.models.builders import GOLDEN, copy_checkpoint


def test_an_unknown_name_lists_what_was_looked_for():
    with pytest.raises(ConfigError, match=r"model 'org/model-7b' is not a folder and not one of "):
        find_model("org/model-7b")
    with pytest.raises(ConfigError, match=r"packaged models \(tiny\); models are not downloaded"):
        find_model("org/model-7b")


def test_a_packaged_name_is_the_packages_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)

    assert find_model("tiny") == Path(distkv_jax.models.__file__).parent / "tiny"
    with pytest.raises(ConfigError, match="tiny has no config.json"):
        find_model("./tiny")


def test_a_file_is_not_a_model():
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        find_model(GOLDEN / "llama_mha" / "model.safetensors")


def test_a_folder_without_config_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no config.json"):
        find_model(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", b"\xff\xfe"])
def test_a_damaged_config_is_refused(tmp_path: Path, content: str | bytes):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(raw)

    with pytest.raises(ConfigError, match="config.json (cannot be read as|must hold a) JSON"):
        read_config(tmp_path)


def test_sampling_defaults_have_our_names(tmp_path: Path):
    folder = copy_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.5, "top_k": 7, "max_new_tokens": 9, "do_sample": true, '
        '"eos_token_id": [2, 9], "top_p": null}'
    )

    assert read_sampling_defaults(folder) == {"temperature": 0.5, "top_k": 7, "max_tokens": 9}
    assert read_config(folder).eos_token_ids == (2, 9)
