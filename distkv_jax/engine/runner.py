"""The device side of an engine: weights, pools, sampler state, and the programs over them."""

import concurrent.futures
import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import (
    Command,
    Fetch,
    FillSlot,
    Forget,
    HostCommand,
    Move,
    Reset,
    Save,
    Step,
    World,
)
from distkv_jax.engine.encode import Encoded, no_load
from distkv_jax.engine.host_memory import HostMemory
from distkv_jax.engine.moves import LANES, Copy, Round, make_move, to_rounds
from distkv_jax.engine.plan import empty_buffer
from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.engine.program import StepInputs, lower_step, step_options
from distkv_jax.engine.sampler import Sampled
from distkv_jax.engine.sampler_state import (
    SamplerState,
    SlotRow,
    empty_row,
    empty_state,
    set_slot,
)
from distkv_jax.engine.shapes import PlanShape
from distkv_jax.engine.step import Pools
from distkv_jax.errors import ConfigError, StepFailed
from distkv_jax.mesh import INSTANCE, TENSOR, place, sharding, spans_processes
from distkv_jax.models.config import ModelConfig
from pallas_kernels.kv_pool import empty_pool

XLA_STATUS = re.compile(r"[A-Z_]{4,}: ")

Progress = Callable[[int, int, str], None]
"""Told how many programs are compiled, of how many, and the last one's name."""


class InFlight(NamedTuple):
    """A dispatched step whose results are not read yet."""

    encoded: Encoded
    ids: jax.Array
    sampled: Sampled
    number: int = 0


class Runner:
    """Runs encoded steps; owns every array on the device.

    After a step that failed the pools and the state are lost: `reset` makes new ones. One thread
    owns a runner.

    Where the mesh spans processes, each has a runner. The one with a `world` leads: whatever it
    does on the devices it tells first, and the others `execute` the same in the same order.
    """

    def __init__(
        self,
        *,
        mesh: Mesh,
        config: ModelConfig,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        pool: PoolSpec,
        num_slots: int,
        implementation: str | None,
        world: World | None = None,
        host_blocks: int = 0,
    ) -> None:
        self.mesh = mesh
        self.pool = pool
        self.num_slots = num_slots
        self.vocab_size = config.vocab_size
        self._graphdef = graphdef
        # As a list: flattening a State of modules at every call costs the host milliseconds.
        self._params, tree = jax.tree.flatten(params)
        self._to_params = functools.partial(jax.tree.unflatten, tree)
        self._options = step_options(config, implementation, gathers=spans_processes(mesh))
        self._world = world
        self._num_commands = 0
        self._programs: dict[PlanShape, jax.stages.Compiled] = {}
        shape, dtype = pool.shape(self.num_instances), pool.dtype
        self._make_pool = jax.jit(
            lambda: empty_pool(shape, dtype), out_shardings=sharding(mesh, INSTANCE, None, TENSOR)
        )
        self._make_state = jax.jit(
            lambda: empty_state(num_slots, config.vocab_size), out_shardings=sharding(mesh)
        )
        # As sharded as the programs want it, whatever the compiler would choose.
        self._fill_slot = jax.jit(set_slot, donate_argnums=0, out_shardings=sharding(mesh))
        self._move_program = jax.jit(make_move(mesh), donate_argnums=0)
        self.host_memory = HostMemory(mesh, pool, host_blocks) if host_blocks else None
        self._pools: Pools
        self._state: SamplerState
        self._is_lost = True
        self._restore()

    @property
    def num_instances(self) -> int:
        """Instances of the mesh."""
        return self.mesh.shape[INSTANCE]

    @property
    def pools(self) -> Pools:
        """The pools as the commands so far leave them."""
        return self._pools

    @property
    def host_pools(self) -> Collection[HostPool]:
        """Accounts of the host memory of this process."""
        return () if self.host_memory is None else self.host_memory.pools.values()

    def warm_up(self, shapes: Sequence[PlanShape], progress: Progress | None = None) -> None:
        """Compile and run every program once, so that nothing compiles while serving.

        Args:
            shapes: Every shape that steps may have.
            progress: Told of each program that is compiled.
        """
        self.compile(shapes, progress)
        if self._world is not None:
            self._world.wait_ready()
        for shape in shapes:
            self.read(self.dispatch(self.idle_step(shape)))
        if self.num_instances > 1:
            self.move_nothing()
        if self.host_memory is not None:
            for command in self.host_memory.warm_up():
                self.order(command)
        # Of a slot that does not exist.
        self.set_slot(self.num_slots, empty_row(self.vocab_size))

    def compile(self, shapes: Sequence[PlanShape], progress: Progress | None = None) -> None:
        """Compile the programs of steps.

        Tracing holds Python's lock, compiling does not: the programs compile in parallel.
        """
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as threads:
            jobs = {threads.submit(self._compile, shape): shape for shape in shapes}
            for done, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
                job.result()
                if progress is not None:
                    progress(done, len(jobs), str(jobs[job]))

    def dispatch(self, encoded: Encoded) -> InFlight:
        """Start a step; returns before it has run.

        Raises:
            StepFailed: It could not be started; pools and state are lost.
            WorldLost: A process that has a part of the mesh is gone; so do all that follow.
        """
        step = Step(self._next_number(), encoded.shape, encoded.buffer)
        result = self._tell_and_execute(step)
        assert result is not None
        return InFlight(encoded, *result, step.number)

    def move(self, copies: Sequence[Copy]) -> None:
        """Copy blocks as if all at once, after the steps dispatched so far; returns before it ran.

        Raises:
            StepFailed: It could not be started; pools and state are lost.
            InvariantError: The copies cannot be simultaneous.
        """
        rounds = to_rounds(
            copies,
            num_instances=self.num_instances,
            num_blocks=self.pool.num_blocks,
            lanes=LANES,
        )
        self._tell_and_execute(Move(self._next_number(), tuple(rounds)))

    def move_nothing(self) -> None:
        """Run the program of moves with nothing to move, to its end."""
        shape = (self.num_instances, self.num_instances, LANES)
        nothing = np.full(shape, self.pool.num_blocks, np.int32)
        self._tell_and_execute(Move(self._next_number(), (Round(nothing, nothing),)))
        jax.block_until_ready(self._pools)

    def set_slot(self, slot: int, row: SlotRow) -> None:
        """Fill a slot's tables before its sequence's first token is sampled.

        Raises:
            StepFailed: As `dispatch`.
        """
        self._tell_and_execute(FillSlot(self._next_number(), slot, row))

    def order(self, command: HostCommand) -> None:
        """Carry out a command that concerns host memory, under a number of its own.

        Raises:
            StepFailed: As `dispatch`.
        """
        self._tell_and_execute(command._replace(number=self._next_number()))

    def hear(self) -> list[FromHost]:
        """Take what was said about host memory since the last call, here and elsewhere."""
        said = [] if self._world is None else self._world.hear()
        return said if self.host_memory is None else said + self.host_memory.hear()

    def reset(self) -> None:
        """Let pools and sampler state go; the next step makes new ones, never beside the old.

        What is in host memory is let go too.
        """
        self._tell_and_execute(Reset(self._next_number()))

    def read(self, step: InFlight) -> tuple[np.ndarray, Sampled | None]:
        """Wait for a step.

        Returns:
            Token ids (instances, rows), and log-probabilities if any row asked for them.

        Raises:
            StepFailed: It failed on a device; pools and state are lost.
        """
        with step_failures():
            return self._read(step)

    def _read(self, step: InFlight) -> tuple[np.ndarray, Sampled | None]:
        ids = np.asarray(step.ids).reshape(self.num_instances, -1)
        if self._world is not None:
            self._world.read(step.number, ids)
        if not any(row.wants_logprobs for row in step.encoded.expected):
            return ids, None
        parts = (np.asarray(leaf) for leaf in step.sampled)
        shaped = (part.reshape(self.num_instances, -1, *part.shape[1:]) for part in parts)
        return ids, Sampled(*shaped)

    def execute(self, command: Command) -> tuple[jax.Array, Sampled] | None:
        """Start a command of the runner that leads, or of this one; returns before it has run.

        Returns:
            What a step samples: token ids of all rows, and log-probabilities.

        Raises:
            StepFailed: It could not be started; pools and state are lost.
        """
        with step_failures():
            match command:
                case Reset():
                    for array in jax.tree.leaves((self._pools, self._state)):
                        array.delete()
                    self._is_lost = True
                    if self.host_memory is not None:
                        self.host_memory.forget_all()
                    return None
                case Step():
                    self._restore()
                    return self._dispatch(command)
                case Move():
                    self._restore()
                    for one in command.rounds:
                        arrays = (place(part, sharding(self.mesh, INSTANCE)) for part in one)
                        self._pools = self._move_program(self._pools, *arrays)
                case Save() | Fetch() | Forget():
                    assert self.host_memory is not None
                    self._restore()
                    self._pools = self.host_memory.execute(command, self._pools)
                case FillSlot():
                    self._restore()
                    slot = np.int32(command.slot)
                    self._state = self._fill_slot(self._state, slot, command.row)
        return None

    def _dispatch(self, step: Step) -> tuple[jax.Array, Sampled]:
        program = self.program(step.shape)
        buffer = place(step.buffer, sharding(self.mesh, INSTANCE))
        result = program(self._params, self._pools, self._state, buffer)
        self._pools, self._state = result.pools, result.state
        return result.ids, result.sampled

    def _next_number(self) -> int:
        self._num_commands += 1
        return self._num_commands

    def _tell_and_execute(self, command: Command) -> tuple[jax.Array, Sampled] | None:
        if self._world is not None:
            self._world.publish(command)
        result = self.execute(command)
        if self._world is not None:
            self._world.dispatched(command.number)
        return result

    def program(self, shape: PlanShape) -> jax.stages.Compiled:
        """The compiled program of a shape, compiling it where that has not been done."""
        if shape not in self._programs:
            self._compile(shape)
        return self._programs[shape]

    def temporary_bytes(self, shape: PlanShape) -> int:
        """Bytes a device needs for a step besides weights, pools and state.

        Raises:
            ConfigError: The backend cannot say.
        """
        memory = self.program(shape).memory_analysis()
        if memory is None:
            raise ConfigError(
                "this backend does not say what a step needs, num_blocks must be given"
            )
        return memory.temp_size_in_bytes

    def _restore(self) -> None:
        """Make empty pools and an empty sampler state where they are lost."""
        if self._is_lost:
            self._pools = tuple(self._make_pool() for _ in range(self.pool.num_layers))
            self._state = self._make_state()
            self._is_lost = False

    def idle_step(self, shape: PlanShape) -> Encoded:
        """A step in which nothing runs: everything but attention takes its time all the same."""
        buffer = empty_buffer(shape, num_blocks=self.pool.num_blocks, num_slots=self.num_slots)
        return Encoded(shape, buffer, (), 0, no_load(self.num_instances))

    def _compile(self, shape: PlanShape) -> None:
        inputs = StepInputs(self._params, self._to_params, self._pools, self._state)
        lowered = lower_step(self._graphdef, inputs, shape, self.mesh, self._options)
        self._programs[shape] = lowered.compile()


@contextlib.contextmanager
def step_failures() -> Iterator[None]:
    """Tell failures of a device apart from everything else."""
    try:
        yield
    # JAX's own, and the plain one it raises for arrays that a failed step took along.
    except RuntimeError as error:
        raise StepFailed(str(error)) from error
    except ValueError as error:
        # What XLA's CPU client raises when a collective failed: its status, as ours never begin.
        if XLA_STATUS.match(str(error)) is None:
            raise
        raise StepFailed(str(error)) from error
