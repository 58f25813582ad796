"""Weights from a safetensors checkpoint straight to their shards."""

from collections.abc import Callable
from pathlib import Path as FilePath

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from distkv_jax.errors import ConfigError
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.safetensors_folder import SafetensorsFolder
from distkv_jax.models.sharding import abstract_decoder, param_shardings
from distkv_jax.models.weight_names import (
    Path,
    checkpoint_name,
    flat_params,
    is_transposed,
    unexpected_names,
)

# Told the bytes done and the bytes in all.
Progress = Callable[[int, int], None]

MAX_NAMED = 4


def load_weights(
    folder: FilePath,
    config: ModelConfig,
    *,
    mesh: Mesh,
    dtype: DTypeLike,
    progress: Progress | None = None,
) -> nnx.State:
    """Read every parameter into its shards, one tensor on the host at a time.

    Args:
        folder: A checkpoint in the Hugging Face layout.
        config: Its config, made `for_tensor`: where KV heads are replicated, the
            checkpoint's are repeated.
        mesh: Where to.
        dtype: Type of the parameters; other types are converted.
        progress: Told after each tensor.

    Raises:
        ConfigError: Files are missing or damaged, or their tensors are not this config's.
    """
    params = abstract_decoder(config, dtype).params
    shardings = param_shardings(params, mesh)
    flat = flat_params(params)
    total = sum(leaf.size * leaf.dtype.itemsize for _, leaf in flat)
    done = 0
    loaded = []
    with SafetensorsFolder(folder) as source:
        check_tensors(
            {name: source.shape(name) for name in source.names},
            {checkpoint_name(path): stored_shape(path, leaf.shape, config) for path, leaf in flat},
        )
        for path, leaf in flat:
            read = _reader(source, path, config, leaf.shape, leaf.dtype)
            array = jax.make_array_from_callback(leaf.shape, shardings[path], read)
            # One tensor at a time: what is read stays on the host until it is transferred.
            loaded.append((path, leaf.replace(array.block_until_ready())))
            done += leaf.size * leaf.dtype.itemsize
            if progress is not None:
                progress(done, total)
    return nnx.from_flat_state(loaded)


def check_tensors(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's tensors with those that a config needs.

    Raises:
        ConfigError: Some are missing, have another shape, or have no parameter.
    """
    missing = sorted(set(expected) - set(found))
    if missing:
        raise ConfigError(f"checkpoint lacks {len(missing)} tensors: {_listed(missing)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ConfigError(f"{name} has shape {found[name]}, config.json asks for {shape}")
    extra = unexpected_names(found, expected)
    if extra:
        raise ConfigError(f"checkpoint has {len(extra)} unexpected tensors: {_listed(extra)}")


def stored_shape(path: Path, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """Give the shape a parameter has in a checkpoint."""
    if repeats_heads(path, config):
        shape = (*shape[:-1], shape[-1] // config.kv_replicas)
    return shape[::-1] if is_transposed(path) else shape


def repeats_heads(path: Path, config: ModelConfig) -> bool:
    """Say whether a parameter's last axis holds each of the checkpoint's heads several times."""
    return config.kv_replicas > 1 and path[-2] in ("k_proj", "v_proj")


def _reader(
    source: SafetensorsFolder,
    path: Path,
    config: ModelConfig,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    """Make the function that reads one shard; instances that hold the same one share it."""
    name = checkpoint_name(path)
    whole = (slice(None),) * len(shape)
    shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or whole, shape, strict=True)
        )
        if bounds not in shards:
            *outer, last = bounds
            if repeats_heads(path, config):
                # A device has one KV head then, and shares it with its neighbours.
                head = last[0] // config.head_dim // config.kv_replicas
                last = (head * config.head_dim, (head + 1) * config.head_dim)
            wanted = tuple(slice(*part) for part in (*outer, last))
            stored = source.read(name, wanted[::-1] if is_transposed(path) else wanted)
            part = (stored.T if is_transposed(path) else stored).astype(dtype, copy=False)
            shards[bounds] = part
        return shards[bounds]

    return read


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
