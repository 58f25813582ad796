"""Putting an engine together from a model, a mesh and a config."""

import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.cache.performance import Profile, StepModel
from distkv_jax.cache.planner import Planner
from distkv_jax.engine.admission import Admission
from distkv_jax.engine.collector import Collector
from distkv_jax.engine.commands import World
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.encode import Encoder
from distkv_jax.engine.engine import Engine
from distkv_jax.engine.host_memory import STAGED_BLOCKS
from distkv_jax.engine.host_tier import HostTier
from distkv_jax.engine.implementation import implementation_for
from distkv_jax.engine.memory import CPU_POOL_BYTES, MemoryUse, blocks_that_fit
from distkv_jax.engine.parts import Parts, Renewal
from distkv_jax.engine.placer import Placer
from distkv_jax.engine.pool_spec import PoolSpec, pool_spec
from distkv_jax.engine.pressure import Pressure
from distkv_jax.engine.rebalance import Proposer, Rebalancer
from distkv_jax.engine.runner import Progress, Runner
from distkv_jax.engine.sampler_state import state_bytes
from distkv_jax.engine.scheduler import Scheduler
from distkv_jax.engine.shapes import shape_table
from distkv_jax.engine.step_profile import find_profile
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import INSTANCE, TENSOR
from distkv_jax.models.checkpoint import LoadedModel


def build_engine(
    model: LoadedModel,
    mesh: Mesh,
    config: EngineConfig,
    progress: Progress | None = None,
    world: World | None = None,
    renewal: Renewal | None = None,
) -> Engine:
    """Size the pools, compile the programs, and start with every block free.

    Args:
        model: On the mesh.
        mesh: Of this process alone, or of the world's.
        config: Sizes and policies.
        progress: Told of each program that is compiled.
        world: The other processes that have a part of the mesh; None where there are none.
        renewal: Makes the engine's parts again when those processes change.

    Raises:
        ConfigError: The settings and the memory do not go together.
        WorldLost: One of the other processes is gone.
    """
    coordinator = make_coordinator(model, mesh, config)
    # Before anything compiles: it refuses a limit that the model does not have.
    admission = Admission(config, model.config, coordinator, model.tokenizer)
    return Engine(
        build_parts(model, mesh, config, coordinator, progress, world),
        admission=admission,
        collector=Collector(model.tokenizer),
        max_step_failures=config.max_step_failures,
        renewal=renewal,
    )


def make_coordinator(model: LoadedModel, mesh: Mesh, config: EngineConfig) -> Coordinator:
    """Size the pools; every block is free."""
    return Coordinator(
        mesh.shape[INSTANCE],
        config.num_blocks or size_pool(model, mesh, config),
        lend_cap=config.lend_cap,
        pooling=config.pooling,
    )


def build_parts(
    model: LoadedModel,
    mesh: Mesh,
    config: EngineConfig,
    coordinator: Coordinator,
    progress: Progress | None = None,
    world: World | None = None,
    profile: Profile | None = None,
) -> Parts:
    """Make what belongs to the devices of a mesh.

    Args:
        model: On the mesh.
        mesh: As of `build_engine`.
        config: Sizes and policies.
        coordinator: Of its blocks.
        progress: Told of each program that is compiled.
        world: As of `build_engine`.
        profile: How long steps take on such a mesh; None to find it out as `config` says.

    Raises:
        ConfigError: The settings and the memory do not go together.
        WorldLost: One of the other processes is gone.
    """
    num_instances = coordinator.num_instances
    num_blocks = coordinator.rmanagers[0].num_blocks
    pool = spec_of(model, mesh, config, num_blocks)
    shapes = shape_table(config, num_instances, num_blocks)
    implementation = implementation_of(model, mesh, config, pool)
    if world is not None:
        world.begin(num_blocks, implementation)
    runner = make_runner(model, mesh, config, pool, implementation, world)
    if config.warm_up:
        runner.warm_up(shapes.shapes, progress)
    placer = Placer(
        coordinator,
        num_instances=num_instances,
        policy=config.placement,
        spread_tokens=config.spread_tokens or config.max_num_batched_tokens,
        step_tokens=config.prefill_tiles * config.tile * num_instances,
        seed=config.seed,
    )
    window = model.config.sliding_window
    profile = profile or find_profile(config, runner, shapes)
    step_model = None if profile is None else StepModel(profile)
    pressure = Pressure(coordinator, patience=config.plan_period)
    return Parts(
        runner=runner,
        coordinator=coordinator,
        scheduler=Scheduler(
            coordinator,
            placer,
            shapes,
            pressure,
            num_slots=config.max_num_seqs,
            window=window,
            tier=HostTier(num_instances, config.host_blocks),
        ),
        encoder=Encoder(
            shapes,
            num_blocks=num_blocks,
            block_size=config.block_size,
            num_slots=config.max_num_seqs,
            window=window,
        ),
        rebalancer=Rebalancer(
            coordinator,
            runner,
            pressure,
            block_size=config.block_size,
            tokens_per_step=config.move_tokens_per_step,
            period=config.plan_period,
            planner=make_planner(config, step_model),
            explain=print_line if config.explain_placement else None,
        ),
        step_model=step_model,
    )


def follow_engine(
    model: LoadedModel, mesh: Mesh, config: EngineConfig, num_blocks: int, implementation: str
) -> Runner:
    """Make the runner of a process that follows, as the leader made its own.

    Raises:
        ConfigError: What the leader chose cannot run here.
    """
    if config.num_blocks is None:
        # As the leader did, in the same order: these may be programs of all processes.
        room = size_pool(model, mesh, config)
        if room < num_blocks:
            raise ConfigError(f"num_blocks={num_blocks} at the leader, {room} fit here")
    pool = spec_of(model, mesh, config, num_blocks)
    own = implementation_of(model, mesh, config, pool)
    if own != implementation:
        raise ConfigError(f"micro_attention is {implementation!r} at the leader and {own!r} here")
    runner = make_runner(model, mesh, config, pool, implementation)
    if config.warm_up:
        runner.compile(shape_table(config, mesh.shape[INSTANCE], num_blocks).shapes)
    return runner


def make_runner(
    model: LoadedModel,
    mesh: Mesh,
    config: EngineConfig,
    pool: PoolSpec,
    implementation: str,
    world: World | None = None,
) -> Runner:
    """A runner with empty pools."""
    return Runner(
        mesh=mesh,
        config=model.config,
        graphdef=model.graphdef,
        params=model.params,
        pool=pool,
        num_slots=config.max_num_seqs,
        implementation=implementation,
        world=world,
        host_blocks=config.host_blocks,
    )


def implementation_of(model: LoadedModel, mesh: Mesh, config: EngineConfig, pool: PoolSpec) -> str:
    """Choose the MicroAttention implementation of a loaded model."""
    return implementation_for(model.config, config, pool, mesh, weights=weight_dtype(model))


def size_pool(model: LoadedModel, mesh: Mesh, config: EngineConfig) -> int:
    """Blocks of each instance's pool: what device memory leaves, or on CPU a fixed default."""
    one_block = spec_of(model, mesh, config, 1)
    num_instances, tensor = mesh.shape[INSTANCE], mesh.shape[TENSOR]
    limit = device_bytes(mesh)
    if limit is None:
        return max(1, CPU_POOL_BYTES // num_instances // one_block.block_bytes)
    largest = shape_table(config, num_instances, 1).shapes[-1]
    runner = make_runner(
        model, mesh, config, one_block, implementation_of(model, mesh, config, one_block)
    )
    leaves = jax.tree.leaves(model.params)
    return blocks_that_fit(
        MemoryUse(
            limit=limit,
            fraction=config.device_memory_fraction,
            weights=sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves),
            state=state_bytes(config.max_num_seqs, model.config.vocab_size),
            temporaries=runner.temporary_bytes(largest),
            block=one_block.block_bytes // tensor,
            num_staged=STAGED_BLOCKS if config.host_blocks else 0,
        )
    )


def device_bytes(mesh: Mesh) -> int | None:
    """Memory of each device of a mesh; None where that cannot be asked, as on CPU."""
    stats = mesh.local_devices[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def make_planner(config: EngineConfig, model: StepModel | None) -> Proposer | None:
    """What proposes moves, if anything does: as many as the budget pays for until the next plan."""
    if not config.planner or model is None or not config.move_tokens_per_step:
        return None
    limit = max(1, config.move_tokens_per_step * config.plan_period // config.block_size)
    return Planner(model, block_size=config.block_size, period=config.plan_period, limit=limit)


def print_line(line: str) -> None:
    """Print a line about placement where everything about the run goes."""
    print(f"placement: {line}", file=sys.stderr)


def spec_of(model: LoadedModel, mesh: Mesh, config: EngineConfig, num_blocks: int) -> PoolSpec:
    """The pools of a loaded model on a mesh."""
    return pool_spec(
        model.config,
        config,
        weights=weight_dtype(model),
        platform=mesh.devices.flat[0].platform,
        num_blocks=num_blocks,
    )


def weight_dtype(model: LoadedModel) -> np.dtype:
    """The dtype of a model's weights."""
    return np.dtype(nnx.to_flat_state(model.params)[0][1][...].dtype)
