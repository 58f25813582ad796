"""The GPU kernel compiles to H100 machine code that spills no registers, without a GPU.

Nothing runs: `make aot-gpu` installs the compiler, about 260 MB. A subprocess compiles, since what
the assembler says about a kernel is printed by native code, and since JAX's CUDA plugin should be
loaded in no other test.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm"):
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{name} is not installed: make aot-gpu") from None

ROOT = Path(__file__).parents[2]
# Head dimension 128, tiles of 1 and 64 tokens; (q_heads, kv_heads) of LLaMA2-7B, of a group of 4
# and of LLaMA2-70B.
HEADS = {"7B": (32, 32), "group 4": (32, 8), "70B": (64, 8)}
CASES = [
    *((tile, heads, 64, "bfloat16", "") for tile in (1, 64) for heads in HEADS),
    *((tile, "70B", block_size, "bfloat16", "") for tile in (1, 64) for block_size in (16, 128)),
    *((tile, "70B", 64, dtype, "") for tile in (1, 64) for dtype in ("int8", "float8_e4m3fn")),
    *((tile, "70B", 64, "bfloat16", "window and cap") for tile in (1, 64)),
]


def assembler_output(
    tile: int, heads: tuple[int, int], block_size: int, kv_dtype: str, options: str
) -> str:
    arguments = [tile, *heads, block_size, kv_dtype, options]
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.gpu_program", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            # The plugin looks for a driver otherwise.
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "MOSAIC_GPU_DUMP_PTXAS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "heads", "block_size", "kv_dtype", "options"), CASES, ids=str)
def test_no_register_is_spilled(
    tile: int, heads: str, block_size: int, kv_dtype: str, options: str
) -> None:
    output = assembler_output(tile, HEADS[heads], block_size, kv_dtype, options)

    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    assert spills == [("0", "0")], output
