"""The only place that takes a time: every run of a case, kept in one JSON line."""

import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jaxlib.version

Size: TypeAlias = int | float | str | bool
"""What a record may say about a case: a size, or the name of a choice."""

# Not the events of tracing: those of inner functions are also in their callers'.
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"

T = TypeVar("T")


class Timing(NamedTuple, Generic[T]):
    """One run.

    Attributes:
        result: What the call returned; its arrays are ready.
        seconds: Wall time from the call to the last array, compiling included.
        compile_s: The part of it that XLA spent compiling, or reading what it had compiled.
    """

    result: T
    seconds: float
    compile_s: float


class Machine(NamedTuple):
    """Where and with what a record was taken.

    Attributes:
        device: Platform and kind of the default device; of a CPU its model name.
        num_devices: Devices that JAX sees, simulated ones included.
        num_cores: CPU cores this process may use.
        jax: Version.
        jaxlib: Version.
        python: Version.
        commit: Short hash, `-dirty` after it where files differ, `unknown` outside a checkout.
    """

    device: str
    num_devices: int
    num_cores: int
    jax: str
    jaxlib: str
    python: str
    commit: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Every run of one case on one machine.

    Attributes:
        case: Name of what ran.
        sizes: What it ran on: shapes, dtypes, choices.
        first_s: Seconds of the first run, which compiles; not among `runs_s`.
        compile_s: Seconds that XLA spent compiling in all runs together.
        runs_s: Seconds of each later run, in order.
        machine: Where it ran.
    """

    case: str
    sizes: Mapping[str, Size]
    first_s: float
    compile_s: float
    runs_s: tuple[float, ...]
    machine: Machine

    @property
    def median_s(self) -> float:
        """Median of the later runs, for the reader: no line contains it."""
        return statistics.median(self.runs_s)

    def line(self) -> str:
        """Write the record as one line of JSON."""
        fields = dataclasses.asdict(self) | {"machine": self.machine._asdict()}
        return json.dumps(fields)


def timed(call: Callable[[], T]) -> Timing[T]:
    """Run `call` once, to its last array."""
    with _compile_seconds() as compiling:
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds = time.perf_counter() - start
    return Timing(result, seconds, sum(compiling))


def measure(
    cases: Mapping[str, Callable[[], object]], *, sizes: Mapping[str, Size], runs: int = 5
) -> dict[str, Record]:
    """Run all cases in turn, `runs` times after a first round that is kept apart.

    Taking turns lets a drift of the machine, or a neighbour on it, meet every case alike.

    Args:
        cases: Name to what runs; inputs are bound already, and no run may consume them.
        sizes: What all cases ran on.
        runs: Rounds after the first, at least 1.

    Returns:
        Name to record, in the order of `cases`.

    Raises:
        ValueError: `runs` is below 1.
    """
    if runs < 1:
        raise ValueError(f"runs={runs} must be at least 1")
    timings: dict[str, list[Timing[object]]] = {name: [] for name in cases}
    for _ in range(1 + runs):
        for name, call in cases.items():
            timings[name].append(timed(call))
    return {
        name: Record(
            case=name,
            sizes=sizes,
            first_s=first.seconds,
            compile_s=first.compile_s + sum(timing.compile_s for timing in later),
            runs_s=tuple(timing.seconds for timing in later),
            machine=machine(),
        )
        for name, (first, *later) in timings.items()
    }


@functools.cache
def machine() -> Machine:
    """Describe this machine; starts JAX if nothing has."""
    device = jax.devices()[0]
    kind = _cpu_model() if device.platform == "cpu" else device.device_kind
    return Machine(
        device=f"{device.platform}: {kind}",
        num_devices=jax.device_count(),
        num_cores=num_cores(),
        jax=jax.__version__,
        jaxlib=jaxlib.version.__version__,
        python=platform.python_version(),
        commit=_commit(),
    )


def num_cores() -> int:
    """Count the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wall_clock() -> float:
    """Read a clock that two processes of one machine share, in seconds."""
    return time.time()


@contextmanager
def _compile_seconds() -> Iterator[list[float]]:
    """Collect the seconds of every compilation, whichever thread asked for it."""
    seconds: list[float] = []
    lock = threading.Lock()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            with lock:
                seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
