"""The Triton kernel computes what the reference does: the shared suite, in Triton's interpreter."""

import dataclasses
import importlib.util
import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.test_micro_attention import (
    DECODE,
    PLAIN,
    PREFILL,
    QUANTISED,
    SCALE,
    Case,
    Options,
    check,
    make_case,
)

if importlib.util.find_spec("triton") is None:
    raise ImportError("triton is not installed: make aot-triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    raise ImportError("the interpreter needs TRITON_INTERPRET=1: make aot-triton")

# Only with the variable set: Triton looks at it while it is imported.
from tests.aot import triton_interpreter


class Cut(NamedTuple):
    """How the keys are cut: None is what a device would get, one step for cases as small."""

    keys: int | None = None
    splits: int | None = None


# Weights and output are each cut off once (the interpreter does not round), by less than 2^-7 of
# values up to 4. The log-sum-exp is held to 1e-5 all the same.
HALF_PRECISION = 2 * 4 * 2**-7
FINE = Cut(keys=8, splits=3)
parametrize_cut = pytest.mark.parametrize("cut", [Cut(), FINE], ids=["whole", "cut"])
parametrize_tile = pytest.mark.parametrize(
    ("spans", "tile"), [(DECODE, 1), (PREFILL, 64)], ids=["decode", "prefill"]
)


def compare(
    case: Case, cut: Cut, options: Options = PLAIN, *, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    partial = triton_interpreter.run(case, SCALE, options, **cut._asdict())

    check(partial, case, options, rtol=rtol, atol=atol)


@parametrize_cut
@parametrize_tile
@pytest.mark.parametrize("heads", [(2, 2), (8, 2), (3, 1)], ids=["group 1", "group 4", "all"])
def test_every_group_size_equals_the_reference(spans, tile: int, heads, cut: Cut) -> None:
    compare(make_case("xla", spans, tile=tile, heads=heads), cut)


@parametrize_cut
def test_a_group_of_many_heads_takes_several_programs(cut: Cut) -> None:
    # Prefill of 8 heads a group would take a minute: the interpreter's programs are slow.
    compare(make_case("xla", DECODE, tile=1, heads=(17, 1)), cut)


@parametrize_cut
@parametrize_tile
@pytest.mark.parametrize("window", [1, 4, 7])
def test_a_window_hides_what_lies_before_it(spans, tile: int, window: int, cut: Cut) -> None:
    case = make_case("xla", spans, tile=tile, heads=(2, 1), window=window)

    compare(case, cut, Options(window=window))


@parametrize_tile
def test_a_soft_cap_bends_the_scores(spans, tile: int) -> None:
    compare(make_case("xla", spans, tile=tile, heads=(2, 1)), FINE, Options(soft_cap=1.5))


@parametrize_tile
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_loses_no_more_than_its_rounding(spans, tile: int, dtype) -> None:
    case = make_case("xla", spans, tile=tile, heads=(8, 2), dtype=dtype)

    compare(case, FINE, atol=HALF_PRECISION)


@parametrize_tile
@pytest.mark.parametrize("kv_dtype", [jnp.bfloat16, *QUANTISED], ids=str)
def test_a_narrower_pool_is_read_exactly(spans, tile: int, kv_dtype) -> None:
    compare(make_case("xla", spans, tile=tile, heads=(8, 2), kv_dtype=kv_dtype), FINE)


@parametrize_tile
@pytest.mark.parametrize("kv_dtype", QUANTISED, ids=str)
def test_a_quantised_pool_goes_with_half_precision(spans, tile: int, kv_dtype) -> None:
    case = make_case("xla", spans, tile=tile, heads=(8, 2), dtype=jnp.bfloat16, kv_dtype=kv_dtype)

    compare(case, FINE, atol=HALF_PRECISION)


@parametrize_tile
def test_scores_of_any_size_neither_overflow_nor_vanish(spans, tile: int) -> None:
    case = make_case("xla", spans, tile=tile, heads=(2, 1))

    # As in the shared suite: scores of 1000 carry 6e-5 of rounding.
    compare(dataclasses.replace(case, q=case.q * 1000), FINE, rtol=1e-3, atol=1e-3)


@parametrize_cut
def test_no_rows_give_nothing(cut: Cut) -> None:
    compare(make_case("xla", (), tile=1, heads=(2, 1)), cut)


def test_every_float8_is_converted_by_its_bits() -> None:
    finite = np.arange(256, dtype=np.uint8)[np.arange(256) % 128 != 127]
    expected = finite.view(jnp.float8_e4m3fn).astype(np.float32)

    np.testing.assert_array_equal(triton_interpreter.convert_float8(finite), expected)
