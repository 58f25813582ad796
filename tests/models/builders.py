"""Small checkpoints and meshes for the tests of models."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


class Golden(NamedTuple):
    """One prompt of a case and what transformers computes for it; see `make_golden.py`."""

    prompt: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
    gap: np.ndarray


def read_golden(case: str) -> list[Golden]:
    """Read the prompts of a case."""
    with np.load(GOLDEN / f"{case}.npz") as arrays:
        return [
            Golden(*(arrays[f"{name}_{number}"] for name in Golden._fields))
            for number in range(arrays["num_prompts"])
        ]


def make_mesh(instance: int = 1, tensor: int = 1) -> Mesh:
    """Make a mesh of the first simulated devices."""
    return jax.make_mesh(
        (instance, tensor),
        ("instance", "tensor"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices("cpu")[: instance * tensor],
    )


def copy_checkpoint(
    target: Path,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Copy the golden `llama_mha`, with its tensors and its config changed."""
    source = GOLDEN / "llama_mha"
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | dict(settings or {})
    (target / "config.json").write_text(json.dumps(config))
    return target
