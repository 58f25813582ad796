"""Parameters in an orbax checkpoint, restored onto any mesh without a full copy anywhere."""

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from distkv_jax.errors import ConfigError
from distkv_jax.mesh import TENSOR, sharding
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.converted_folder import FOLDER, check_files
from distkv_jax.models.load_weights import check_tensors, repeats_heads
from distkv_jax.models.sharding import abstract_decoder, param_shardings
from distkv_jax.models.weight_names import Path, flat_params

T = TypeVar("T")

CHUNK_BYTES = 16 * 2**20


def save_params(folder: FilePath, params: dict[str, Array]) -> None:
    """Write parameters by their dotted paths, in chunks that a shard can be read from."""
    save_args = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in params}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / FOLDER).absolute(), params, save_args=save_args)


def restore_params(
    folder: FilePath, config: ModelConfig, *, mesh: Mesh, dtype: DTypeLike
) -> nnx.State:
    """Restore every parameter directly into its shards.

    Args:
        folder: What `distkv convert` wrote.
        config: Its config, made `for_tensor`.
        mesh: Where to.
        dtype: Type of the parameters; other types are converted.

    Raises:
        ConfigError: The folder is damaged, or its tensors are not this config's.
    """
    check_files(folder)
    flat = flat_params(abstract_decoder(config, dtype).params)
    shardings = param_shardings(nnx.from_flat_state(flat), mesh)
    wanted = {
        dotted(path): _target(path, leaf, config, mesh, shardings[path]) for path, leaf in flat
    }
    path = (folder / FOLDER).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        found = _read(lambda: _stored_shapes(checkpointer, path), path)
        check_tensors(found, {name: target.shape for name, target in wanted.items()})
        arrays = _read(lambda: checkpointer.restore(path, wanted), path)
    return nnx.from_flat_state(
        (path, leaf.replace(_placed(path, arrays[dotted(path)], config, shardings[path])))
        for path, leaf in flat
    )


def dotted(path: Path) -> str:
    """Name a parameter by its path."""
    return ".".join(str(part) for part in path)


def _read(read: Callable[[], T], path: FilePath) -> T:
    try:
        return read()
    except Exception as error:  # Orbax raises bare Exception, among others.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path} is damaged: {reason}") from error


def _stored_shapes(
    checkpointer: ocp.StandardCheckpointer, path: FilePath
) -> dict[str, tuple[int, ...]]:
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
        raise ConfigError("it has no metadata")
    return {name: tuple(entry.shape) for name, entry in metadata.items()}


def _target(
    path: Path, leaf: nnx.Variable, config: ModelConfig, mesh: Mesh, final: NamedSharding
) -> jax.ShapeDtypeStruct:
    """Say what to restore: the final shards, or the heads that are to be repeated."""
    if not repeats_heads(path, config):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=final)
    *outer, width = leaf.shape
    is_split = outer and outer[0] % mesh.shape[TENSOR] == 0
    shape = (*outer, width // config.kv_replicas)
    where = sharding(mesh, TENSOR) if is_split else sharding(mesh)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)


def _placed(path: Path, array: Array, config: ModelConfig, final: NamedSharding) -> Array:
    if not repeats_heads(path, config):
        return array
    # One function for all layers, so that it is compiled once.
    repeat = jax.jit(_repeat_heads, static_argnums=(1, 2), out_shardings=final)
    return repeat(array, config.head_dim, config.kv_replicas)


def _repeat_heads(
    stored: Float[Array, "... width"], head_dim: int, replicas: int
) -> Float[Array, "... wide"]:
    *outer, width = stored.shape
    by_head = stored.reshape(*outer, width // head_dim, head_dim)
    return jnp.repeat(by_head, replicas, axis=-2).reshape(*outer, -1)
