"""What is the GPU kernel's own: how it cuts the work, how it steps, what it refuses.

Simulated; `tests/aot/test_gpu.py` compiles it. Its numerics are in the shared suite.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import Partial, micro_attention
from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.gpu import micro_attention_gpu
from pallas_kernels.micro_attention.gpu.plan import make_plan, trim
from pallas_kernels.micro_attention.gpu.sizes import Sizes, sizes_of
from tests.pallas_kernels.implementations import TESTED, InterpretGPUParams
from tests.pallas_kernels.test_micro_attention import (
    DECODE,
    PLAIN,
    PREFILL,
    SCALE,
    Span,
    check,
    make_case,
)


def simulated(num_ctas: int, **arrays: Any) -> Partial:
    call = functools.partial(micro_attention_gpu, scale=SCALE, num_ctas=num_ctas)
    return jax.jit(functools.partial(call, interpret=InterpretGPUParams()))(**arrays)


@pytest.mark.parametrize(
    ("spans", "tile", "heads", "block_size", "num_ctas"),
    [
        (DECODE, 1, (8, 2), 16, 1),
        (DECODE[:4], 1, (2, 1), 128, 1),
        (PREFILL[3:], 64, (2, 1), 32, 3),
    ],
    ids=["blocks of a quarter step", "blocks of two steps", "prefill cut for three"],
)
def test_blocks_and_steps_and_workers_need_not_match(
    monkeypatch: pytest.MonkeyPatch,
    spans: tuple[Span, ...],
    tile: int,
    heads: tuple[int, int],
    block_size: int,
    num_ctas: int,
) -> None:
    monkeypatch.setitem(TESTED, "gpu-here", TESTED["xla"]._replace(block_size=block_size))
    case = make_case("gpu-here", spans, tile=tile, heads=heads)
    q, pool, block_ids, block_starts, rows = jax.tree.map(jnp.asarray, case.arrays)

    partial = simulated(
        num_ctas, q=q, pool=pool, block_ids=block_ids, block_starts=block_starts, rows=rows
    )

    check(partial, case, PLAIN, rtol=1e-5, atol=1e-5)


def call_of(
    *, dtype: Any = jnp.bfloat16, kv_dtype: Any = None, head_dim: int = 128, block_size: int = 64
) -> tuple[Any, ...]:
    shape = (6, 2, 2, block_size, head_dim)
    data = jnp.zeros(shape, kv_dtype or dtype)
    scales = jnp.zeros(shape[:-1]) if data.dtype.itemsize == 1 else None
    lists = jnp.zeros(5, jnp.int32)
    q = jnp.zeros((3, 1, 4, head_dim), dtype)
    return q, KVPool(data, scales), lists, lists, jnp.zeros((3, 5), jnp.int32)


def sizes_for(tiles: int, num_ctas: int) -> Sizes:
    q, pool, *_ = call_of()
    return sizes_of(jnp.zeros((tiles, *q.shape[1:]), q.dtype), pool, num_ctas=num_ctas)


def make_rows(*rows: tuple[int, int, int, int, int]) -> jax.Array:
    return jnp.array(rows, jnp.int32)


@pytest.mark.parametrize(
    "lengths",
    [(512,), (3,), (16,) * 64, (1, 500, 0, 7)],
    ids=["one row", "fewer steps than workers", "many rows", "ragged rows"],
)
def test_work_is_cut_in_equal_runs_whatever_the_rows(lengths: tuple[int, ...]) -> None:
    ends = np.cumsum(lengths)
    rows = [
        (tile, end - length, end, 64 * length - 1, 1)
        for tile, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    sizes = sizes_for(len(rows), 132)
    starts = np.concatenate([64 * np.arange(length) for length in lengths]).astype(np.int32)

    plan = make_plan(jnp.asarray(starts), make_rows(*rows), sizes, window=None)

    first, end, _ = np.asarray(plan.workers).T
    total = sum(lengths) * sizes.kv_heads
    assert (first[0], end[-1]) == (0, total)
    np.testing.assert_array_equal(first[1:], end[:-1])
    assert set(end - first) <= {total // sizes.num_workers, -(-total // sizes.num_workers)}


def test_blocks_that_nobody_sees_are_not_read() -> None:
    starts = jnp.arange(0, 640, 64, dtype=jnp.int32)
    # Queries at 300 to 309, with a window of 100: blocks at 192, 256 and no other.
    rows = trim(starts, make_rows((0, 0, 10, 300, 10)), window=100, block_size=64)

    np.testing.assert_array_equal(rows[0, [Row.BEGIN, Row.END]], [3, 5])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": jnp.float32}, TypeError, "q is float32, implementation 'gpu' takes bfloat16"),
        (
            {"dtype": jnp.bfloat16, "kv_dtype": jnp.float16},
            TypeError,
            "q is bfloat16, pool is float16, implementation 'gpu' takes the same dtype for both",
        ),
        ({"head_dim": 80}, ValueError, r"head_dim=80, implementation 'gpu' takes one of \(64, 128"),
        ({"block_size": 48}, ValueError, "block_size=48, implementation 'gpu' takes 8, 16, 32 and"),
        (
            {"kv_dtype": jnp.int8, "block_size": 16},
            ValueError,
            "block_size=16, implementation 'gpu' takes at least 32 with a pool of int8",
        ),
    ],
    ids=["float32", "two dtypes", "head_dim", "block_size", "quantised block_size"],
)
def test_what_the_hardware_cannot_do_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        micro_attention_gpu(*call_of(**change), scale=1.0)


def test_another_platform_is_refused() -> None:
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        micro_attention(*call_of(), scale=1.0, implementation="gpu")
