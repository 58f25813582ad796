"""The Triton kernel compiles for GPUs before Hopper, and a call of it for an A100, without a GPU.

A kernel must keep everything in registers at sizes of real models: a spill goes through memory.
"""

import functools
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.kv_pool import KVPool, is_quantised
from pallas_kernels.micro_attention.triton import micro_attention_triton
from pallas_kernels.micro_attention.triton.launch import Launch, plan_launch

for module in ("triton", "jax_triton", "jax_cuda13_plugin"):
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{module} is not installed: make aot-triton")

from triton.backends.compiler import GPUTarget  # noqa: E402 # pyright: ignore[reportMissingImports]
from triton.backends.nvidia.compiler import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    get_ptxas,
)
from triton.compiler import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    ASTSource,
)
from triton.compiler import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    compile as compile_kernel,
)

from pallas_kernels.micro_attention.triton import kernel as kernels  # noqa: E402

# Without Triton, pyright takes the kernel for a plain function.
KERNEL: Any = kernels.micro_attention_kernel

KV_HEADS = 8
HEAD_DIM = 128
NUM_BLOCKS = 512
# Bytes that a program may have: sm_86 and sm_89 have the least.
SHARED_BYTES = 99 * 1024
NAMES = {
    np.dtype(jnp.bfloat16): "bf16",
    np.dtype(np.float16): "fp16",
    np.dtype(np.float32): "fp32",
    np.dtype(np.int8): "i8",
    np.dtype(jnp.float8_e4m3fn): "u8",
}


def shapes_of(
    tiles: int, tile: int, group: int, block_size: int, dtype: np.dtype, kv_dtype: np.dtype
) -> tuple:
    shape = (NUM_BLOCKS, 2, KV_HEADS, block_size, HEAD_DIM)
    scales = jax.ShapeDtypeStruct(shape[:-1], jnp.float32) if is_quantised(kv_dtype) else None
    lists = jax.ShapeDtypeStruct((2 * NUM_BLOCKS,), jnp.int32)
    return (
        jax.ShapeDtypeStruct((tiles, tile, group * KV_HEADS, HEAD_DIM), dtype),
        KVPool(jax.ShapeDtypeStruct(shape, kv_dtype), scales),  # pyright: ignore[reportArgumentType]
        lists,
        lists,
        jax.ShapeDtypeStruct((tiles, 5), jnp.int32),
    )


def launch_for(shapes: tuple) -> Launch:
    launches = []

    def plan(q, pool, block_ids, block_starts, rows) -> None:
        launches.append(
            plan_launch(q, pool, block_ids, rows, scale=0.1, window=1000, soft_cap=None)
        )

    jax.eval_shape(plan, *shapes)
    return launches[0]


def ptxas_report(ptx: str, arch: int, folder: Path) -> str:
    (folder / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", "kernel.ptx"]
    return subprocess.run(
        [*command, "-o", "kernel.cubin"], cwd=folder, check=True, capture_output=True, text=True
    ).stderr


@pytest.mark.parametrize("tile", [1, 64], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("arch", "group", "block_size", "dtype", "kv_dtype"),
    [
        *[
            (80, group, block_size, jnp.bfloat16, kv_dtype)
            for group in (1, 4, 8)
            for block_size in (64, 16)
            for kv_dtype in (jnp.bfloat16, np.int8)
        ],
        (80, 4, 64, np.float16, np.float16),
        (80, 4, 64, np.float32, np.float32),
        *[(arch, 4, 64, jnp.bfloat16, jnp.float8_e4m3fn) for arch in (80, 86, 90)],
        *[(arch, 4, 64, jnp.bfloat16, jnp.bfloat16) for arch in (86, 90)],
    ],
)
def test_it_compiles_without_spills(
    tile: int,
    arch: int,
    group: int,
    block_size: int,
    dtype: np.dtype,
    kv_dtype: np.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shapes = shapes_of(64, tile, group, block_size, np.dtype(dtype), np.dtype(kv_dtype))
    launch = launch_for(shapes)
    pointers = [NAMES[np.dtype(dtype)], NAMES[np.dtype(kv_dtype)], "fp32", "i32", "i32", "i32"]
    pointers += [NAMES[output.dtype] for output in launch.outputs]
    names = KERNEL.arg_names
    signature = {name: f"*{of}" for name, of in zip(names, pointers, strict=False)}

    kernel = compile_kernel(
        ASTSource(
            KERNEL,
            signature | dict.fromkeys(launch.constants, "constexpr"),
            constexprs=launch.constants,
            # XLA's buffers are aligned.
            attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
        ),
        target=GPUTarget("cuda", arch, 32),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "enable_fp_fusion": True,
        },
    )

    ptx = kernel.asm["ptx"]
    report = ptxas_report(ptx, arch, tmp_path)
    registers = re.search(r"Used (\d+) registers", report)
    assert registers is not None
    print(f"\n{registers[0]}, {kernel.metadata.shared} bytes of shared memory", end=" ")
    assert "0 bytes spill stores, 0 bytes spill loads" in report, report
    assert kernel.metadata.shared <= SHARED_BYTES
    if arch >= 90:
        return
    # Rows of the pool are fetched ahead, 16 bytes at a time where they are as wide as products are.
    width = 8 if is_quantised(np.dtype(kv_dtype)) else 16
    assert re.search(rf"cp\.async\.c[ga]\.shared\.global \[[^]]*\], \[[^]]*\], {width:#x}", ptx)
    if dtype != np.float32:
        assert "mma" in ptx


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> SingleDeviceSharding:
    """A device that is not there: jax-triton asks the first one otherwise."""
    from jax_triton import triton_lib  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(
        triton_lib.triton_kernel_call_lib, "get_compute_capability", lambda device: 80
    )
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=Path(__file__).with_name("a100.txtpb").read_text(),
        topology="1x1x1",
    )
    return SingleDeviceSharding(topology.devices[0])


@pytest.mark.parametrize(
    ("tiles", "tile"), [(1, 1), (64, 1), (8, 64)], ids=["long", "many", "prefill"]
)
@pytest.mark.parametrize("kv_dtype", [jnp.bfloat16, jnp.float8_e4m3fn])
def test_a_call_compiles_for_an_a100(
    tiles: int, tile: int, kv_dtype: np.dtype, a100: SingleDeviceSharding
) -> None:
    shapes = shapes_of(tiles, tile, 4, 64, np.dtype(jnp.bfloat16), np.dtype(kv_dtype))
    q, pool = shapes[:2]
    call = functools.partial(micro_attention_triton, scale=0.1)

    lowered = jax.jit(call, in_shardings=a100, out_shardings=a100).lower(*shapes)
    partial = lowered.out_info
    memory = lowered.compile().memory_analysis()

    assert (partial.out.shape, partial.out.dtype) == (q.shape, q.dtype)
    assert (partial.lse.shape, partial.lse.dtype) == (q.shape[:-1], jnp.float32)
    assert memory is not None
    # Room for the parts' partials, none for a copy of the pool (its bits are read as they are).
    assert memory.temp_size_in_bytes < pool.data.size


@pytest.mark.parametrize(
    ("tiles", "kv_heads"), [(1, 1), (1, 8), (1, 32), (64, 1), (64, 8)], ids=str
)
def test_decode_fills_an_a100(tiles: int, kv_heads: int) -> None:
    shapes = (
        jax.ShapeDtypeStruct((tiles, 1, 4 * kv_heads, HEAD_DIM), jnp.bfloat16),
        KVPool(jax.ShapeDtypeStruct((1024, 2, kv_heads, 64, HEAD_DIM), jnp.bfloat16)),  # pyright: ignore[reportArgumentType]
        jax.ShapeDtypeStruct((1024,), jnp.int32),
        jax.ShapeDtypeStruct((1024,), jnp.int32),
        jax.ShapeDtypeStruct((tiles, 5), jnp.int32),
    )

    assert np.prod(launch_for(shapes).grid) >= 2 * 108
