"""A safetensors checkpoint rewritten as an orbax one."""

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from distkv_jax.errors import ConfigError
from distkv_jax.mesh import AXES
from distkv_jax.models.converted_folder import is_converted, write_marker
from distkv_jax.models.load_weights import Progress, load_weights
from distkv_jax.models.model_folder import CONFIG, GENERATION, find_model, read_config
from distkv_jax.models.orbax_params import dotted, save_params
from distkv_jax.models.weight_names import flat_params

COPIED = (
    CONFIG,
    GENERATION,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def convert(source: str | Path, target: str | Path, progress: Progress | None = None) -> Path:
    """Write `source` as an orbax checkpoint that restores onto any mesh.

    The weights keep the type the config names, and are held once in host memory. The
    target appears whole or not at all: it is written beside its place, then renamed.

    Args:
        source: A packaged model's name, or a folder in the Hugging Face layout.
        target: A folder that does not exist yet; its parent does.
        progress: Told as `load_weights` tells it.

    Returns:
        The target.

    Raises:
        ConfigError: The target exists, its parent does not, or the source cannot be loaded;
            nothing is left behind.
    """
    folder, target = find_model(source), Path(target).expanduser().absolute()
    if target.exists():
        raise ConfigError(f"{target} exists, convert does not overwrite")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is not a folder, convert does not create it")
    if is_converted(folder):
        raise ConfigError(f"{folder} is already an orbax checkpoint")
    config = read_config(folder)
    mesh = _host_mesh()
    params = load_weights(folder, config, mesh=mesh, dtype=config.dtype, progress=progress)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        save_params(partial, {dotted(path): leaf[...] for path, leaf in flat_params(params)})
        write_marker(partial)
        for name in COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _host_mesh() -> jax.sharding.Mesh:
    """Make a mesh of one CPU device, which is there beside any accelerator."""
    device = jax.local_devices(backend="cpu")[:1]
    return jax.sharding.Mesh(np.asarray(device).reshape(1, 1), AXES)
