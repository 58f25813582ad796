"""Lowering one step for its shapes, from arrays or from shapes alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from distkv_jax.engine.plan import buffer_size
from distkv_jax.engine.sampler_state import SamplerState
from distkv_jax.engine.sampling_params import MAX_LOGPROBS
from distkv_jax.engine.shapes import PlanShape
from distkv_jax.engine.step import Pools, StepOptions, make_step
from distkv_jax.mesh import INSTANCE, sharding
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder


class StepInputs(NamedTuple):
    """What a step reads besides its plan: arrays, or their shapes with shardings.

    Attributes:
        params: The leaves of the parameters.
        to_params: Puts leaves together again.
        pools: One per layer.
        state: The sampler's.
    """

    params: Sequence[Array | jax.ShapeDtypeStruct]
    to_params: Callable[[list[Array]], nnx.State]
    pools: Pools
    state: SamplerState


def step_options(
    config: ModelConfig, implementation: str | None, *, gathers: bool = False
) -> StepOptions:
    """What a model's steps are compiled for."""
    return StepOptions(
        scale=config.head_dim**-0.5,
        window=config.sliding_window,
        max_logprobs=min(MAX_LOGPROBS, config.vocab_size),
        implementation=implementation,
        gathers=gathers,
    )


def lower_step(
    graphdef: nnx.GraphDef[Decoder],
    inputs: StepInputs,
    shape: PlanShape,
    mesh: Mesh,
    options: StepOptions,
) -> jax.stages.Lowered:
    """Trace and lower a step; the pools and the state are donated."""
    step = make_step(graphdef, inputs.to_params, shape, mesh, options)
    buffer = jax.ShapeDtypeStruct(
        (shape.instances, buffer_size(shape)), np.int32, sharding=sharding(mesh, INSTANCE)
    )
    return jax.jit(step, donate_argnums=(1, 2)).lower(
        inputs.params, inputs.pools, inputs.state, buffer
    )
