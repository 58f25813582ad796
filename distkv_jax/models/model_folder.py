"""Which folder a `--model` argument means, and the small files in it."""

import importlib.resources
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

from distkv_jax.errors import ConfigError
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.json_file import read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
PACKAGED = ("tiny",)

# What a generation_config.json may say about sampling, and its name in SamplingParams.
SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def find_model(model: str | Path) -> Path:
    """Find the folder of a model; nothing is ever downloaded.

    Args:
        model: A name in `PACKAGED`, or a folder (`./tiny` is a folder, `tiny` the package's).

    Raises:
        ConfigError: There is no such folder, or it has no `config.json`.
    """
    if model in PACKAGED:
        folder = Path(str(importlib.resources.files("distkv_jax.models").joinpath(str(model))))
    else:
        folder = Path(model).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is not a folder"
        raise ConfigError(
            f"model {str(model)!r} {what} and not one of the packaged models "
            f"({', '.join(PACKAGED)}); models are not downloaded"
        )
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} has no {CONFIG}")
    return folder


def read_config(model: str | Path) -> ModelConfig:
    """Read a model's config, and none of its weights.

    Raises:
        ConfigError: There is no such model, or its config is not one we know.
    """
    folder = find_model(model)
    return ModelConfig.from_hf(read_json(folder / CONFIG), _generation(folder))


def shape_names() -> list[str]:
    """List the well-known models whose shapes, and nothing else, ship with the package."""
    return sorted(file.name.removesuffix(".json") for file in _shapes().iterdir())


def read_shape(name: str) -> ModelConfig:
    """Read the config of a name in `shape_names()`."""
    return ModelConfig.from_hf(json.loads((_shapes() / f"{name}.json").read_text()))


def read_sampling_defaults(model: str | Path) -> dict[str, int | float]:
    """Read the sampling settings a model recommends, by their names in SamplingParams."""
    generation = _generation(find_model(model))
    return {
        ours: value
        for theirs, ours in SAMPLING_NAMES.items()
        if isinstance(value := generation.get(theirs), int | float)
    }


def _shapes() -> Traversable:
    return importlib.resources.files("distkv_jax.models") / "shapes"


def _generation(folder: Path) -> Mapping[str, object]:
    path = folder / GENERATION
    return read_json(path) if path.is_file() else {}
