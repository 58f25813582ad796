"""Measuring how long this machine's steps take, for the planner's model of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distkv_jax.cache.performance import Profile, Rate
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.encode import Encoded
from distkv_jax.engine.moves import LANES
from distkv_jax.engine.plan import host_views
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.shapes import PlanShape, ShapeTable
from distkv_jax.errors import ConfigError
from pallas_kernels.micro_attention import Row

RUNS = 3
"""Of each measurement; the median counts."""
LEAST_S = 1e-9
"""What takes less is lost in the clock's noise."""


def find_profile(config: EngineConfig, runner: Runner, shapes: ShapeTable) -> Profile | None:
    """Load the profile that was asked for, or measure one where blocks may move.

    A file that is not there yet is written with what was measured.

    Raises:
        ConfigError: The file is not a profile, or cannot be read or written.
    """
    path = None if config.step_profile is None else Path(config.step_profile).expanduser()
    try:
        if path is not None and path.exists():
            return Profile.load(path)
        if runner.num_instances == 1 or not config.pooling:
            return None
        if not config.warm_up:
            return Profile.linear()
        profile = measure_profile(runner, shapes)
        if path is not None:
            profile.save(path)
        return profile
    except OSError as error:
        raise ConfigError(f"step_profile={config.step_profile!r}: {error}") from error


def measure_profile(runner: Runner, shapes: ShapeTable) -> Profile:
    """Time compiled programs with nothing in them, and with attention over known contexts.

    Leaves the pools as they were: nothing is written.
    """
    small, large = decode_shapes(shapes, spanning=False)
    idle_s = {shape: seconds_of(runner, runner.idle_step(shape)) for shape in shapes.shapes}
    far_small, far_large = (
        idle_s[dataclasses.replace(shape, spanning=True)] for shape in (small, large)
    )
    more_rows = max(1, large.decode_rows - small.decode_rows)
    more_s = (far_large - idle_s[large]) - (far_small - idle_s[small])
    return Profile(
        tokens_per_s=rates(
            {shape.tokens: took for shape, took in idle_s.items() if not shape.spanning}
        ),
        kv_tokens_per_s=rates(
            {
                tokens: seconds_of(runner, attending(runner, small, tokens)) - idle_s[small]
                for tokens in contexts(runner)
            }
        ),
        spanning_step_s=max(0.0, far_small - idle_s[small]),
        spanning_tile_s=max(0.0, more_s / more_rows),
        # A round takes its time whether it is full or not; the planner counts blocks.
        copy_block_s=median_s(runner.move_nothing) / (LANES * max(1, runner.num_instances - 1)),
    )


def decode_shapes(shapes: ShapeTable, *, spanning: bool) -> tuple[PlanShape, PlanShape]:
    """The smallest and the largest bucket without prompts."""
    found = [
        shape for shape in shapes.shapes if not shape.prefill_tiles and shape.spanning == spanning
    ]
    return found[0], found[-1]


def contexts(runner: Runner) -> list[int]:
    """Contexts to measure: an eighth of a pool and all of it, in whole blocks."""
    blocks = {max(1, runner.pool.num_blocks // 8), runner.pool.num_blocks}
    return [count * runner.pool.block_size for count in sorted(blocks)]


def rates(seconds: dict[int, float]) -> tuple[Rate, ...]:
    """Turn seconds by size into rates; noise must not make more tokens take less time."""
    found: list[Rate] = []
    longest = LEAST_S
    for size, took in sorted(seconds.items()):
        # A little more each time: equal seconds may not stay equal as rates.
        longest = max(longest * (1 + 1e-9), took)
        found.append(Rate(size, size / longest))
    return tuple(found)


def attending(runner: Runner, shape: PlanShape, context: int) -> Encoded:
    """A step with one query on every instance, over `context` tokens there."""
    step = runner.idle_step(shape)
    views = host_views(step.buffer, shape)
    count = context // runner.pool.block_size
    views["block_ids"][:, :count] = np.arange(count)
    views["block_starts"][:, :count] = np.arange(count) * runner.pool.block_size
    row = np.zeros(len(Row), np.int32)
    row[[Row.END, Row.POSITION, Row.COUNT]] = count, context - 1, 1
    for rows in (views["decode_own"], views["output_own"]):
        rows[:, 0] = row
    return step


def seconds_of(runner: Runner, step: Encoded) -> float:
    """Time a step, from its dispatch to its last result."""
    return median_s(lambda: runner.read(runner.dispatch(step)))


def median_s(call: Callable[[], object]) -> float:
    """The median of a few runs, in seconds."""
    taken = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return max(LEAST_S, statistics.median(taken))
