"""A model ready to run: its config, weights on a mesh, tokenizer and sampling defaults."""

from pathlib import Path
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from distkv_jax.mesh import TENSOR
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.converted_folder import is_converted
from distkv_jax.models.load_weights import Progress, load_weights
from distkv_jax.models.model_folder import find_model, read_config, read_sampling_defaults
from distkv_jax.models.sharding import abstract_decoder
from distkv_jax.models.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "read_config"]


class LoadedModel(NamedTuple):
    """What `load_model` gives.

    Attributes:
        config: As split over the mesh: KV heads include replicas.
        graphdef: The modules without their parameters; static, for `nnx.merge`.
        params: The parameters, sharded over `tensor` and equal on every instance.
        tokenizer: None if the checkpoint has none.
        sampling: Settings the model recommends, by their names in SamplingParams.
    """

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    tokenizer: Tokenizer | None
    sampling: dict[str, int | float]


def load_model(
    model: str | Path,
    *,
    mesh: Mesh,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model onto a mesh.

    Args:
        model: `tiny`, a folder in the Hugging Face layout, or one that `convert` wrote.
        mesh: A mesh with the axes of `distkv_jax.mesh`.
        dtype: Type of weights and activations; None for the checkpoint's own.
        progress: Told the bytes done and in all, after each tensor.

    Raises:
        ConfigError: There is no such model, it is not one we know, its heads do not divide
            over the mesh, or its files are damaged.
    """
    folder = find_model(model)
    config = read_config(model).for_tensor(mesh.shape[TENSOR])
    dtype = config.dtype if dtype is None else dtype
    tokenizer = Tokenizer.from_folder(folder)
    if is_converted(folder):
        # Orbax takes a second to import, and most models do not need it.
        from distkv_jax.models.orbax_params import restore_params

        params = restore_params(folder, config, mesh=mesh, dtype=dtype)
    else:
        params = load_weights(folder, config, mesh=mesh, dtype=dtype, progress=progress)
    return LoadedModel(
        config=config,
        graphdef=abstract_decoder(config, dtype).graphdef,
        params=params,
        tokenizer=tokenizer,
        sampling=read_sampling_defaults(model),
    )
