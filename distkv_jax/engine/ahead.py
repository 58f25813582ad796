"""Compiling a model's step for devices that are not here, and reading what memory it needs."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jax.typing import DTypeLike

from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.implementation import implementation_for
from distkv_jax.engine.pool_spec import PoolSpec, pool_spec
from distkv_jax.engine.program import StepInputs, lower_step, step_options
from distkv_jax.engine.sampler_state import empty_state
from distkv_jax.engine.shapes import PlanShape, shape_table
from distkv_jax.engine.step import Pools
from distkv_jax.environment import allow_absent_tpu
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import AXES, INSTANCE, TENSOR, MeshConfig, sharding
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.sharding import abstract_decoder, param_shardings
from distkv_jax.models.weight_names import flat_params
from pallas_kernels.kv_pool import empty_pool

T = TypeVar("T")


class StepMemory(NamedTuple):
    """Bytes of one device, as the compiler counts them.

    Attributes:
        arguments: Weights, pools, sampler state and plan.
        temporaries: What the step needs besides.
        outputs: Results that do not take an argument's place.
        program: The program itself.
    """

    arguments: int
    temporaries: int
    outputs: int
    program: int

    @property
    def total(self) -> int:
        """Everything that is in memory at once."""
        return self.arguments + self.temporaries + self.outputs + self.program


def topology_mesh(config: MeshConfig) -> Mesh:
    """Make a mesh of devices that are described, not here.

    Raises:
        ConfigError: The mesh file has no topology, its compiler is not installed, or the topology
            has another number of devices.
    """
    if config.platform != "tpu" or config.topology is None:
        raise ConfigError(
            f"mesh {config.name} cannot be compiled for ahead of time: platform is "
            f"{config.platform!r} and topology {config.topology!r}, expected 'tpu' and a topology"
        )
    allow_absent_tpu()
    try:
        described = topologies.get_topology_desc(config.topology, platform="tpu")
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"topology {config.topology!r} is not available, is libtpu installed "
            f"(pip install 'distkv-jax[aot-tpu]')? {error}"
        ) from error
    if len(described.devices) != config.num_devices:
        raise ConfigError(
            f"topology {config.topology!r} has {len(described.devices)} devices, mesh "
            f"{config.name} needs {config.num_devices}"
        )
    return jax.make_mesh(
        (config.instance, config.tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=described.devices,
    )


def compile_step(
    model: ModelConfig,
    engine: EngineConfig,
    mesh: Mesh,
    shape: PlanShape,
    *,
    dtype: DTypeLike,
    num_blocks: int,
) -> jax.stages.Compiled:
    """Compile one step of a model, from shapes alone.

    Args:
        model: The model, made `for_tensor`.
        engine: Sizes.
        mesh: Devices, here or only described.
        shape: Bucket of the step.
        dtype: Of the weights.
        num_blocks: Blocks of each instance.

    Raises:
        jax.errors.JaxRuntimeError: The compiler refuses, as when memory does not suffice.
    """
    weights = np.dtype(jnp.dtype(dtype))
    decoder = abstract_decoder(model, dtype)
    shardings = param_shardings(decoder.params, mesh)
    placed = [
        (path, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])))
        for path, leaf in flat_params(decoder.params)
    ]
    params, tree = jax.tree.flatten(nnx.from_flat_state(placed))
    spec = pool_spec(
        model,
        engine,
        weights=weights,
        platform=mesh.devices.flat[0].platform,
        num_blocks=num_blocks,
    )
    inputs = StepInputs(
        params=params,
        to_params=functools.partial(jax.tree.unflatten, tree),
        pools=abstract_pools(spec, mesh),
        state=shapes_of(lambda: empty_state(engine.max_num_seqs, model.vocab_size), mesh),
    )
    implementation = implementation_for(model, engine, spec, mesh, weights=weights)
    options = step_options(model, implementation)
    return lower_step(decoder.graphdef, inputs, shape, mesh, options).compile()


def step_memory(compiled: jax.stages.Compiled) -> StepMemory:
    """Read what a device needs for a step.

    Raises:
        ConfigError: The compiler does not tell.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise ConfigError("this compiler does not tell what memory a step needs")
    return StepMemory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )


def abstract_pools(spec: PoolSpec, mesh: Mesh) -> Pools:
    """The shapes of all layers' pools, blocks split over instances and heads over `tensor`."""
    one = shapes_of(
        lambda: empty_pool(spec.shape(mesh.shape[INSTANCE]), spec.dtype),
        mesh,
        INSTANCE,
        None,
        TENSOR,
    )
    return (one,) * spec.num_layers


def shapes_of(make: Callable[[], T], mesh: Mesh, *axes: str | None) -> T:
    """The shapes of what `make` makes, every leaf sharded over `axes`."""
    placed = sharding(mesh, *axes)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        jax.eval_shape(make),
    )


def buckets(engine: EngineConfig, mesh: Mesh, num_blocks: int) -> tuple[PlanShape, PlanShape]:
    """The largest decode-only bucket and the largest of all, spanning where there are instances."""
    shapes = shape_table(engine, mesh.shape[INSTANCE], num_blocks).shapes
    return [shape for shape in shapes if not shape.prefill_tiles][-1], shapes[-1]
