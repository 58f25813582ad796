"""The TPU kernel's own promises: knobs, what it skips, and what it refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.tpu import micro_attention_tpu
from pallas_kernels.micro_attention.tpu.kernel import Plan, visible_entries
from pallas_kernels.micro_attention.tpu.sizes import Sizes, check_tpu, choose_sizes
from tests.pallas_kernels.test_micro_attention import (
    DECODE,
    PLAIN,
    PREFILL,
    SCALE,
    Span,
    check,
    make_case,
)

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
BLOCK_SIZE = 32


@pytest.mark.usefixtures("fails_on_races")
@pytest.mark.parametrize(
    ("spans", "tile"), [(DECODE, 1), (PREFILL[:4], 64)], ids=["decode", "prefill"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        None,
        Sizes(cores=1, fetch_blocks=1, step_blocks=1, step_heads=2),
        Sizes(cores=2, fetch_blocks=6, step_blocks=3, step_heads=1),
    ],
    ids=["default", "one block", "two cores"],
)
def test_no_knob_changes_a_result(sizes: Sizes | None, spans: tuple[Span, ...], tile: int) -> None:
    case = make_case("tpu-interpret", spans, tile=tile, heads=(16, 2))

    call = functools.partial(micro_attention_tpu, scale=SCALE, sizes=sizes, interpret=INTERPRET)
    partial = jax.jit(call)(*jax.tree.map(jnp.asarray, case.arrays))

    check(partial, case, PLAIN, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fails_on_races")
def test_a_query_that_sees_nothing_is_empty_beside_one_that_sees() -> None:
    # The tile's first 30 tokens lie before the only block that is here.
    case = make_case("tpu-interpret", (Span(2, 64, (1,)),), tile=64, heads=(2, 1))

    call = functools.partial(micro_attention_tpu, scale=SCALE, interpret=INTERPRET)
    partial = jax.jit(call)(*jax.tree.map(jnp.asarray, case.arrays))

    assert np.isfinite(partial.lse).any()
    check(partial, case, PLAIN, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("position", [0, 31, 32, 100, 200])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_only_blocks_that_some_query_sees_are_fetched(
    window: int | None, position: int, count: int
) -> None:
    starts = np.array([7, 0, 64, 96, 160, 192, 9], np.int32)  # gaps are blocks elsewhere
    begin, end = 1, 6
    row = np.zeros(len(Row), np.int32)
    row[[Row.BEGIN, Row.END, Row.POSITION, Row.COUNT]] = begin, end, position, count
    earliest = 0 if window is None else position - window + 1
    seen = [
        entry
        for entry in range(begin, end)
        if count and earliest - BLOCK_SIZE < starts[entry] < position + count
    ]

    arrays: Any = map(jnp.asarray, (starts, starts, row))
    plan = Plan(*arrays)
    first, last = visible_entries(plan, jnp.int32(0), block_size=BLOCK_SIZE, window=window)

    assert list(range(int(first), int(last))) == seen


@pytest.mark.parametrize(
    ("pool", "queries", "sizes"),
    [
        # LLaMA2 7B: a block is 256 KiB; two cores fetch 1 MiB each.
        (
            KVPool(jnp.zeros((1, 2, 32, 16, 128), jnp.bfloat16)),
            1,
            Sizes(cores=2, fetch_blocks=8, step_blocks=8, step_heads=16),
        ),
        # The same in prefill: fewer heads at once, for there are more scores in each.
        (
            KVPool(jnp.zeros((1, 2, 32, 16, 128), jnp.bfloat16)),
            64,
            Sizes(cores=2, fetch_blocks=8, step_blocks=8, step_heads=8),
        ),
        # LLaMA2 70B over 8 devices: one KV head, one core, steps of 512 tokens.
        (
            KVPool(jnp.zeros((1, 2, 1, 64, 128), jnp.bfloat16)),
            8,
            Sizes(cores=1, fetch_blocks=32, step_blocks=8, step_heads=1),
        ),
        # Scales of 4 heads are not whole tiles: no halves.
        (
            KVPool(jnp.zeros((1, 2, 8, 256, 128), jnp.int8), jnp.zeros((1, 2, 8, 256))),
            4,
            Sizes(cores=1, fetch_blocks=2, step_blocks=2, step_heads=8),
        ),
    ],
    ids=["7B", "7B prefill", "70B", "int8"],
)
def test_sizes_follow_from_the_bytes_of_a_block(pool: KVPool, queries: int, sizes: Sizes) -> None:
    assert choose_sizes(pool, queries, np.dtype(jnp.bfloat16)) == sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": jnp.float16}, "q is float16, on TPU it must be float32 or bfloat16"),
        ({"head_dim": 80}, r"head_dim=80, on TPU it must be one of \(64, 128, 256\)"),
        (
            {"block_size": 8},
            "block_size=8, on TPU it must be a multiple of 16 from 16 to 256 for a pool of bf",
        ),
        ({"block_size": 24}, "block_size=24, on TPU it must be a multiple of 16 from 16 to 256"),
        ({"block_size": 512}, "block_size=512, on TPU it must be a multiple of 16 from 16 to 256"),
        (
            {"num_entries": 131_000},
            "131000 list entries and 8 rows need 1048160 bytes of scalar memory, a TPU core has "
            "1040384 for them: use larger blocks or fewer",
        ),
    ],
    ids=["dtype", "head_dim", "small block", "odd block", "large block", "scalars"],
)
def test_what_it_cannot_run_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "dtype": jnp.bfloat16,
        "head_dim": 128,
        "block_size": 16,
        "num_entries": 65_536,
    }

    def ask(dtype: type, head_dim: int, block_size: int, num_entries: int) -> None:
        pool = KVPool(jnp.zeros((1, 2, 1, block_size, head_dim), jnp.bfloat16))
        q = jnp.zeros((1, 1, 1, head_dim), dtype)
        check_tpu(q, pool, num_entries=num_entries, num_rows=8)

    ask(**good)

    with pytest.raises(ValueError, match=message):
        ask(**(good | change))


def test_without_a_tpu_it_fails_loudly() -> None:
    case = make_case("tpu-interpret", DECODE, tile=1, heads=(2, 1))

    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU backend"):
        micro_attention_tpu(*jax.tree.map(jnp.asarray, case.arrays), scale=SCALE)
