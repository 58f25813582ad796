"""Every implementation of MicroAttention computes what the reference does, and reads no dead slot.

Queries of padding and every slot that no query may see are NaN in all cases.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from pallas_kernels.kv_pool import KVPool, is_quantised, quantise
from pallas_kernels.micro_attention import IMPLEMENTATIONS, Partial, Row, micro_attention
from pallas_kernels.micro_attention.contract import check_shapes
from pallas_kernels.micro_attention.reference import micro_attention_reference
from tests.pallas_kernels.implementations import TESTED

NUM_BLOCKS = 48
NUM_ENTRIES = 64
TILES = 9
ROWS = 9
SCALE = 8**-0.5
QUANTISED = (np.dtype(np.int8), np.dtype(jnp.float8_e4m3fn))


class Options(NamedTuple):
    """What an implementation is compiled for besides shapes."""

    window: int | None = None
    soft_cap: float | None = None


class Span(NamedTuple):
    """Queries of one sequence, and which of the sequence's blocks are here (None: all).

    The first query is at `position` if blocks have 4 tokens; with larger ones it lies as far into
    its block, counted from the block's nearer end.
    """

    position: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.count: unused here)
    blocks: tuple[int, ...] | None = None

    def first(self, block_size: int) -> int:
        """Position of the first query."""
        block, slot = divmod(self.position, 4)
        return block * block_size + (slot if slot < 2 else block_size - 4 + slot)


# Lengths of 1, a block, a block + 1 and many; then one whose blocks are half elsewhere, and one
# that sees none of the blocks that are here.
DECODE = (Span(0, 1), Span(3, 1), Span(4, 1), Span(26, 1), Span(21, 1, (0, 3, 4)), Span(2, 1, (1,)))
PREFILL = (
    Span(0, 1),
    Span(0, 4),
    Span(1, 4),
    Span(17, 10),
    Span(2, 64),
    Span(5, 18, (0, 2, 3)),
    Span(0, 3, (1,)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The arrays of one call."""

    q: np.ndarray
    pool: KVPool
    block_ids: np.ndarray
    block_starts: np.ndarray
    rows: np.ndarray

    @property
    def arrays(self) -> tuple[Any, ...]:
        """In the order of the parameters."""
        return self.q, self.pool, self.block_ids, self.block_starts, self.rows

    @property
    def num_in_use(self) -> int:
        """Rows that are not padding."""
        return int((self.rows[:, Row.COUNT] > 0).sum())


def make_case(
    implementation: str,
    spans: tuple[Span, ...],
    *,
    tile: int,
    heads: tuple[int, int],
    window: int | None = None,
    dtype: np.dtype | type = np.float32,
    kv_dtype: np.dtype | type | None = None,
    seed: int = 0,
) -> Case:
    """Put each span's blocks anywhere in the pool and its queries in any tile; the rest is NaN."""
    _, block_size, head_dim = TESTED[implementation]
    q_heads, kv_heads = heads
    rng = np.random.default_rng(seed)
    tiles, free = rng.permutation(TILES), list(rng.permutation(NUM_BLOCKS))
    q = np.full((TILES, tile, q_heads, head_dim), np.nan)
    pool = np.full((NUM_BLOCKS, 2, kv_heads, block_size, head_dim), np.nan)
    # Past the lists in use: a block that does not exist.
    block_ids = np.full(NUM_ENTRIES, NUM_BLOCKS, np.int32)
    block_starts = np.zeros(NUM_ENTRIES, np.int32)
    # Past the rows in use: rows that would do harm, but for their count.
    rows = np.tile(np.array([tiles[0], 0, NUM_ENTRIES, 3, 0], np.int32), (ROWS, 1))
    entry = 0
    for row, span in enumerate(spans):
        position = span.first(block_size)
        end, first = position + span.count, entry
        for block in range(-(-end // block_size)) if span.blocks is None else span.blocks:
            block_ids[entry], block_starts[entry] = free.pop(), block * block_size
            for slot in range(block_size):
                at = block * block_size + slot
                if at < end and (window is None or at > position - window):
                    shape = (2, kv_heads, head_dim)
                    pool[block_ids[entry], :, :, slot] = rng.normal(size=shape)
            entry += 1
        rows[row] = (tiles[row], first, entry, position, span.count)
        # As large at any width: scores stay within about 4.
        shape = (span.count, q_heads, head_dim)
        q[tiles[row], : span.count] = 2 * (8 / head_dim) ** 0.5 * rng.normal(size=shape)
    return Case(
        q=q.astype(dtype),
        pool=make_pool(pool, np.dtype(dtype if kv_dtype is None else kv_dtype)),
        block_ids=block_ids,
        block_starts=block_starts,
        rows=rows,
    )


def make_pool(numbers: np.ndarray, dtype: np.dtype) -> KVPool:
    """Store K and V in a dtype; where quantised, dead slots have any data and a NaN scale."""
    if not is_quantised(dtype):
        return KVPool(numbers.astype(dtype))  # pyright: ignore[reportArgumentType] (NumPy's)
    is_dead = np.isnan(numbers[..., 0])
    data, scales = quantise(jnp.where(is_dead[..., None], 1, numbers), dtype)
    dead = np.where(is_dead, np.nan, scales).astype(np.float32)
    return KVPool(np.asarray(data), dead)  # pyright: ignore[reportArgumentType] (NumPy's)


@functools.cache
def compiled(implementation: str, options: Options) -> Callable[..., Partial]:
    """Jit one implementation."""
    return jax.jit(functools.partial(TESTED[implementation].call, scale=SCALE, **options._asdict()))


PLAIN = Options()


def run(implementation: str, case: Case, options: Options = PLAIN) -> Partial:
    """Call an implementation."""
    return compiled(implementation, options)(*jax.tree.map(jnp.asarray, case.arrays))


def check(partial: Partial, case: Case, options: Options, *, rtol: float, atol: float) -> None:
    """Compare with the reference; what saw nothing must be exactly empty."""
    out, lse = micro_attention_reference(*case.arrays, scale=SCALE, **options._asdict())
    is_empty = np.isneginf(lse)

    assert partial.out.dtype == case.q.dtype
    assert partial.lse.dtype == jnp.float32
    np.testing.assert_array_equal(np.isneginf(partial.lse), is_empty)
    np.testing.assert_array_equal(np.asarray(partial.out, np.float32)[is_empty], 0)
    np.testing.assert_allclose(np.asarray(partial.out, np.float64), out, rtol=rtol, atol=atol)
    np.testing.assert_allclose(partial.lse[~is_empty], lse[~is_empty], rtol=rtol, atol=1e-5)


parametrize_implementation = pytest.mark.parametrize("implementation", sorted(TESTED))
parametrize_tile = pytest.mark.parametrize(
    ("spans", "tile"), [(DECODE, 1), (PREFILL, 64)], ids=["decode", "prefill"]
)


@parametrize_implementation
@parametrize_tile
@pytest.mark.parametrize(
    "heads", [(2, 2), (8, 2), (16, 2), (3, 1)], ids=["group 1", "group 4", "group 8", "all"]
)
def test_every_group_size_equals_the_reference(
    implementation: str, spans: tuple[Span, ...], tile: int, heads: tuple[int, int]
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=heads)

    check(run(implementation, case), case, PLAIN, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
@pytest.mark.parametrize("seed", range(4))
def test_blocks_and_tiles_may_be_anywhere(
    implementation: str, spans: tuple[Span, ...], tile: int, seed: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(2, 1), seed=seed)

    check(run(implementation, case), case, PLAIN, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
@pytest.mark.parametrize("window", [1, 4, 7])
def test_a_window_hides_what_lies_before_it(
    implementation: str, spans: tuple[Span, ...], tile: int, window: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(2, 1), window=window)

    options = Options(window=window)
    check(run(implementation, case, options), case, options, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
def test_a_soft_cap_bends_the_scores(
    implementation: str, spans: tuple[Span, ...], tile: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(2, 1))

    # Scores reach about 4: the cap must bite.
    options = Options(soft_cap=1.5)
    check(run(implementation, case, options), case, options, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
def test_bfloat16_loses_no_more_than_its_rounding(
    implementation: str, spans: tuple[Span, ...], tile: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(8, 2), dtype=jnp.bfloat16)

    # Weights and output are each rounded once, by at most 2^-9 of values up to 4; everything else
    # is float32. Statistics kept in bfloat16 would be wrong by some 2^-6 in the lse.
    check(run(implementation, case), case, PLAIN, rtol=1e-5, atol=2 * 4 * 2**-9)


@parametrize_implementation
@parametrize_tile
def test_the_pool_may_be_narrower_than_the_queries(
    implementation: str, spans: tuple[Span, ...], tile: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(8, 2), kv_dtype=jnp.bfloat16)

    # Nothing is rounded but what is in the pool already.
    check(run(implementation, case), case, PLAIN, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
@pytest.mark.parametrize("kv_dtype", QUANTISED, ids=str)
def test_quantised_blocks_are_read_with_their_scales(
    implementation: str, spans: tuple[Span, ...], tile: int, kv_dtype: np.dtype
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(8, 2), kv_dtype=kv_dtype)

    check(run(implementation, case), case, PLAIN, rtol=1e-5, atol=1e-5)


@parametrize_implementation
@parametrize_tile
def test_scores_of_any_size_neither_overflow_nor_vanish(
    implementation: str, spans: tuple[Span, ...], tile: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(2, 1))
    case = dataclasses.replace(case, q=case.q * 1000)

    # exp(1000) is infinite and exp(-1000) zero in any float; scores of 1000 carry 6e-5 of rounding.
    check(run(implementation, case), case, PLAIN, rtol=1e-3, atol=1e-3)


@parametrize_implementation
@parametrize_tile
def test_the_order_of_rows_does_not_matter(
    implementation: str, spans: tuple[Span, ...], tile: int
) -> None:
    case = make_case(implementation, spans, tile=tile, heads=(2, 1))
    rows = case.rows.copy()
    rows[: case.num_in_use] = rows[: case.num_in_use][::-1]

    forward = run(implementation, case)
    backward = run(implementation, dataclasses.replace(case, rows=rows))

    np.testing.assert_array_equal(forward.out, backward.out)
    np.testing.assert_array_equal(forward.lse, backward.lse)


@parametrize_implementation
def test_no_rows_give_nothing(implementation: str) -> None:
    case = make_case(implementation, (), tile=1, heads=(2, 1))

    partial = run(implementation, case)

    np.testing.assert_array_equal(partial.out, 0)
    np.testing.assert_array_equal(partial.lse, -np.inf)


def test_an_unknown_implementation_is_refused() -> None:
    case = make_case("xla", DECODE, tile=1, heads=(2, 1))
    known = ", ".join(map(repr, sorted(IMPLEMENTATIONS)))

    with pytest.raises(
        ValueError, match=rf"implementation='abacus' is unknown, expected one of \[{known}\]"
    ):
        micro_attention(
            *jax.tree.map(jnp.asarray, case.arrays), scale=SCALE, implementation="abacus"
        )


def test_the_default_implementation_is_a_known_one() -> None:
    case = make_case("xla", DECODE, tile=1, heads=(2, 1))

    arrays = jax.tree.map(jnp.asarray, case.arrays)
    check(micro_attention(*arrays, scale=SCALE), case, PLAIN, rtol=1e-5, atol=1e-5)


def zeros(*shape: int, dtype: type = np.float32) -> Array:
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pool": KVPool(zeros(6, 3, 2, 4, 8))},
            r"pool has 3 parts a block, expected 2 \(K and V\)",
        ),
        ({"pool": KVPool(zeros(6, 2, 3, 4, 8))}, "q_heads=4 must be a multiple of kv_heads=3"),
        ({"pool": KVPool(zeros(6, 2, 2, 4, 16))}, "q has head_dim=8, pool has head_dim=16"),
        (
            {"pool": KVPool(zeros(6, 2, 2, 4, 8, dtype=np.int8))},
            "pool of int8 has no scales, expected them with int8 and float8_e4m3fn only",
        ),
        (
            {"pool": KVPool(zeros(6, 2, 2, 4, 8), zeros(6, 2, 2, 4))},
            "pool of float32 has scales, expected them with int8 and float8_e4m3fn only",
        ),
        (
            {"pool": KVPool(zeros(6, 2, 2, 4, 8, dtype=np.int8), zeros(6, 2, 4, 2))},
            r"pool has scales of shape \(6, 2, 4, 2\), expected \(6, 2, 2, 4\)",
        ),
        (
            {"q": zeros(3, 1, 4, 8, dtype=jnp.bfloat16)},
            "q is bfloat16, expected at least as wide as the pool's float32",
        ),
        ({"block_starts": zeros(6, dtype=np.int32)}, "5 block_ids, 6 block_starts"),
        ({"rows": zeros(3, 4, dtype=np.int32)}, "rows have 4 columns, expected 5"),
        ({"window": 0}, "window=0 must be at least 1"),
    ],
    ids=[
        "parts",
        "heads",
        "head_dim",
        "no scales",
        "scales",
        "scales' shape",
        "width",
        "lists",
        "columns",
        "window",
    ],
)
def test_shapes_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "q": zeros(3, 1, 4, 8),
        "pool": KVPool(zeros(6, 2, 2, 4, 8)),
        "block_ids": zeros(5, dtype=np.int32),
        "block_starts": zeros(5, dtype=np.int32),
        "rows": zeros(3, 5, dtype=np.int32),
        "window": None,
    }
    check_shapes(**good)

    with pytest.raises(ValueError, match=message):
        check_shapes(**(good | change))
