"""Proof of a capacity by the devices' own compiler, without the devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distkv_jax.cli.capacity import Fit
from distkv_jax.engine.ahead import StepMemory, buckets, compile_step, step_memory, topology_mesh
from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig
from distkv_jax.models.config import ModelConfig

PROBE_BLOCKS = 16
"""Blocks of an instance when temporaries are measured: they do not grow with the pools."""


class CompiledStep(NamedTuple):
    """A step that the compiler accepted."""

    shape: str
    memory: StepMemory


class Proof(NamedTuple):
    """A capacity, and the steps that were compiled with it.

    Attributes:
        fit: What fits beside the largest step's temporaries.
        topology: What was compiled for.
        steps: The largest decode step, and the largest of all.
    """

    fit: Fit
    topology: str
    steps: tuple[CompiledStep, ...]


def prove(
    model: ModelConfig,
    mesh_config: MeshConfig,
    engine: EngineConfig,
    *,
    dtype: str,
    capacity: Callable[[int], Fit],
    progress: Callable[[int, int, str], None],
) -> Proof:
    """Size the pools beside the largest step's temporaries, and compile with pools of that size.

    Args:
        model: The checkpoint's config.
        mesh_config: A mesh with a topology.
        engine: Sizes asked for.
        dtype: Of weights; `auto` is the checkpoint's own.
        capacity: What fits beside so many bytes of temporaries.
        progress: Told of each program that is compiled.

    Returns:
        The capacity, compiled.

    Raises:
        ConfigError: The compiler is not installed or refuses, or nothing fits.
    """
    mesh = topology_mesh(mesh_config)
    weights = jnp.dtype(model.dtype if dtype == "auto" else dtype)

    def compiled(shape_index: int, num_blocks: int) -> CompiledStep:
        shape = buckets(engine, mesh, num_blocks)[shape_index]
        try:
            step = compile_step(
                model.for_tensor(mesh_config.tensor),
                engine,
                mesh,
                shape,
                dtype=weights,
                num_blocks=num_blocks,
            )
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(f"{shape} does not compile: {error}") from error
        return CompiledStep(str(shape), step_memory(step))

    progress(0, 3, "the largest step, to count its temporaries")
    probe = compiled(-1, PROBE_BLOCKS).memory
    found = capacity(probe.temporaries + probe.program + probe.outputs)
    steps = []
    for done, index in enumerate((0, 1), start=1):
        progress(done, 3, f"with pools of {found.num_blocks:,} blocks")
        steps.append(compiled(index, found.num_blocks))
    progress(3, 3, "compiled")
    assert mesh_config.topology is not None  # `topology_mesh` refused its absence
    return Proof(found, mesh_config.topology, tuple(steps))
