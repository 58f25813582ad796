"""Which mesh axis splits which axis of which parameter."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from distkv_jax.mesh import TENSOR, sharding
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.weight_names import Path, flat_params

# Every instance holds all parameters, so nothing is split over that axis.
MESH_AXES: dict[str, str | None] = {
    "vocab": TENSOR,
    "heads": TENSOR,
    "intermediate": TENSOR,
    "hidden": None,
    "head_dim": None,
}

AXES: dict[tuple[str, str], tuple[str, ...]] = {
    ("embed_tokens", "weight"): ("vocab", "hidden"),
    ("lm_head", "kernel"): ("hidden", "vocab"),
    ("q_proj", "kernel"): ("hidden", "heads"),
    ("k_proj", "kernel"): ("hidden", "heads"),
    ("v_proj", "kernel"): ("hidden", "heads"),
    ("o_proj", "kernel"): ("heads", "hidden"),
    ("q_proj", "bias"): ("heads",),
    ("k_proj", "bias"): ("heads",),
    ("v_proj", "bias"): ("heads",),
    ("o_proj", "bias"): ("hidden",),
    ("gate_proj", "kernel"): ("hidden", "intermediate"),
    ("up_proj", "kernel"): ("hidden", "intermediate"),
    ("down_proj", "kernel"): ("intermediate", "hidden"),
    ("gate_proj", "bias"): ("intermediate",),
    ("up_proj", "bias"): ("intermediate",),
    ("down_proj", "bias"): ("hidden",),
    ("q_norm", "weight"): ("head_dim",),
    ("k_norm", "weight"): ("head_dim",),
    ("input_layernorm", "weight"): ("hidden",),
    ("post_attention_layernorm", "weight"): ("hidden",),
    ("norm", "weight"): ("hidden",),
}


class AbstractDecoder(NamedTuple):
    """A decoder without numbers.

    Attributes:
        graphdef: What `nnx.merge` needs beside the parameters; static and hashable.
        params: The parameters' shapes and types, as an `nnx.State` of `ShapeDtypeStruct`.
    """

    graphdef: nnx.GraphDef
    params: nnx.State


def abstract_decoder(config: ModelConfig, dtype: DTypeLike) -> AbstractDecoder:
    """Build the decoder's structure, allocating nothing."""
    return AbstractDecoder(*nnx.split(Decoder(config, dtype=dtype, rngs=None)))


def spec_of(path: Path, shape: tuple[int, ...], tensor: int) -> PartitionSpec:
    """Look up how a parameter is split.

    Heads always divide (`ModelConfig.for_tensor` saw to it). A vocabulary or an MLP width
    that does not is kept whole on every device: right, and only a little dearer.
    """
    names = (MESH_AXES[axis] for axis in AXES[str(path[-2]), str(path[-1])])
    return PartitionSpec(
        *(name if size % tensor == 0 else None for name, size in zip(names, shape, strict=True))
    )


def param_shardings(params: nnx.State, mesh: Mesh) -> dict[Path, NamedSharding]:
    """Give every parameter's sharding on `mesh`, by its path.

    Args:
        params: Parameters or their shapes, from a config that was made `for_tensor`.
        mesh: A mesh with the axes of `distkv_jax.mesh`.
    """
    tensor = mesh.shape[TENSOR]
    return {
        path: sharding(mesh, *spec_of(path, leaf.shape, tensor))
        for path, leaf in flat_params(params)
    }


def weight_bytes(config: ModelConfig, dtype: DTypeLike, tensor: int) -> int:
    """Count the bytes of weights that one device of an instance holds."""
    split = config.for_tensor(tensor)
    total = 0
    for path, leaf in flat_params(abstract_decoder(split, dtype).params):
        is_split = any(spec_of(path, leaf.shape, tensor))
        total += math.prod(leaf.shape) // (tensor if is_split else 1)
    return total * jnp.dtype(dtype).itemsize
