"""A tiny model's runner on any mesh, for tests of the engine."""

import jax
import numpy as np
from flax import nnx

from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.engine.runner import Runner
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.sharding import param_shardings
from distkv_jax.models.weight_names import flat_params
from tests.models.builders import make_mesh

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_layers=3,
    q_heads=4,
    kv_heads=2,
    head_dim=4,
    max_model_len=4096,
)


def make_runner(
    instance: int = 1,
    tensor: int = 1,
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    num_slots: int = 4,
    config: ModelConfig = CONFIG,
) -> Runner:
    """Make a runner with random weights."""
    mesh = make_mesh(instance, tensor)
    config = config.for_tensor(tensor)
    graphdef, params = nnx.split(Decoder(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    shardings = param_shardings(params, mesh)
    placed = [
        (path, leaf.replace(jax.device_put(leaf[...], shardings[path])))
        for path, leaf in flat_params(params)
    ]
    return Runner(
        mesh=mesh,
        config=config,
        graphdef=graphdef,
        params=nnx.from_flat_state(placed),
        pool=PoolSpec(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            kv_heads=config.kv_heads,
            block_size=block_size,
            head_dim=config.head_dim,
            dtype=np.dtype(np.float32),
        ),
        num_slots=num_slots,
        implementation=None,
    )
