"""How fast can all cores together read memory? The roof of every decode step on a CPU.

    python -m benchmarks.bandwidth

Prints one JSON line; bytes per second are `num_bytes` over a run's seconds. The loop is C, built
by the system's compiler where there is one, else numpy's; `how` says which.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int

from benchmarks.measure import Record, measure, num_cores

Words: TypeAlias = Int[np.ndarray, " words"]
"""Memory to read."""

SOURCE = """
#include <stddef.h>
#include <stdint.h>
uint64_t fold(const uint64_t *words, size_t count) {
    uint64_t all = 0;
    for (size_t i = 0; i < count; i++) all ^= words[i];
    return all;
}
"""
# An integer fold: compilers may reorder it, so it is vectorised without relaxed arithmetic.
COMPILE = ["cc", "-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC"]


class Reader(NamedTuple):
    """A loop that reads every word once, without holding Python's lock.

    Attributes:
        how: "cc" or "numpy".
        read: The loop.
    """

    how: str
    read: Callable[[Words], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure once, as the command line says."""
    parser = argparse.ArgumentParser(description="time all cores reading memory together")
    parser.add_argument("--mib", type=int, default=256, help="memory to read, above any cache")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args(argv)
    print(read_memory(num_bytes=args.mib << 20, runs=args.runs).line())
    return 0


def read_memory(*, num_bytes: int = 256 << 20, runs: int = 5) -> Record:
    """Time all cores reading `num_bytes` together, each its own part.

    Args:
        num_bytes: Memory to read in a run; several times the last cache.
        runs: How often.

    Returns:
        The record; its sizes hold `num_bytes`, `num_threads` and `how`.
    """
    num_threads = num_cores()
    words = np.ones(num_bytes // 8, np.int64)  # ones, not zeros: pages must be there
    parts = np.array_split(words, num_threads)
    reader = make_reader()
    with ThreadPoolExecutor(num_threads) as pool:
        [record] = measure(
            {"read_memory": lambda: list(pool.map(reader.read, parts))},
            sizes={"num_bytes": words.nbytes, "num_threads": num_threads, "how": reader.how},
            runs=runs,
        ).values()
    return record


def bytes_per_s(record: Record) -> float:
    """Work out the median bandwidth of a record of `read_memory`."""
    return float(record.sizes["num_bytes"]) / record.median_s


def make_reader() -> Reader:
    """Build the C loop, or fall back to numpy's where no compiler is found."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "fold.c"), Path(folder, "fold.so")
        source.write_text(SOURCE)
        try:
            subprocess.run(
                [*COMPILE, str(source), "-o", str(library)], check=True, capture_output=True
            )
            fold = ctypes.CDLL(str(library)).fold
        except (OSError, subprocess.CalledProcessError):
            return Reader("numpy", np.bitwise_xor.reduce)
    fold.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    fold.restype = ctypes.c_uint64
    return Reader("cc", lambda words: fold(words.ctypes.data, words.size))


if __name__ == "__main__":
    sys.exit(main())
