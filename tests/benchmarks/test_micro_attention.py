"""The benchmark counts each byte of KV once, and every batch is one that attention can run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.measure import Machine, Record
from benchmarks.micro_attention import Sizes, kv_bytes, line, make_batch, make_call
from benchmarks.platform_attention import contiguous, paged_call

FLOAT32, BFLOAT16, INT8 = np.dtype(np.float32), np.dtype(jnp.bfloat16), np.dtype(np.int8)


def make_sizes(kv_dtype: np.dtype = FLOAT32) -> Sizes:
    return Sizes(q_heads=4, kv_heads=2, head_dim=8, q_dtype=FLOAT32, kv_dtype=kv_dtype)


@pytest.mark.parametrize(
    ("kv_dtype", "expected"),
    [(FLOAT32, 7 * 2 * 2 * 32), (BFLOAT16, 7 * 2 * 2 * 16), (INT8, 7 * 2 * 2 * (8 + 4))],
    ids=str,
)
def test_bytes_are_those_of_the_tokens_with_their_scales(kv_dtype: np.dtype, expected: int) -> None:
    assert kv_bytes([3, 4], make_sizes(kv_dtype)) == expected


def test_a_line_has_the_share_of_bandwidth_in_the_median() -> None:
    machine = Machine("cpu: x", 1, 2, "0", "0", "3", "abc")
    record = Record(
        case="cpu",
        sizes={"num_bytes": 100},
        first_s=9.0,
        compile_s=5.0,
        runs_s=(4.0, 2.0, 1.0),
        machine=machine,
    )

    read = json.loads(line(record, bandwidth=200.0))

    assert read["case"] == "cpu"
    assert (read["bytes_per_s"], read["bandwidth"], read["of_bandwidth"]) == (50.0, 200.0, 0.25)


def test_every_block_is_named_once_and_only_by_its_sequence() -> None:
    batch = make_batch([9, 4], 4, make_sizes())

    assert sorted(batch.block_ids.tolist()) == list(range(4))
    assert batch.block_starts.tolist() == [0, 4, 8, 0]
    assert batch.rows.tolist() == [[0, 0, 3, 8, 1], [1, 3, 4, 3, 1]]


def test_the_platforms_attention_computes_the_same() -> None:
    sizes = make_sizes()
    batch = make_batch([9, 4, 9], 4, sizes)

    out, _ = jax.tree.leaves(make_call("xla", batch, sizes)())
    short, long = jax.tree.leaves(make_call("dense", batch, sizes)())

    assert [len(group.k[0]) for group in contiguous(batch)] == [4, 9]
    np.testing.assert_allclose(out[jnp.array([1])], short, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[jnp.array([0, 2])], long, rtol=1e-5, atol=1e-5)


def test_what_a_platform_cannot_do_is_refused() -> None:
    sizes = make_sizes(INT8)
    batch = make_batch([4], 4, sizes)

    with pytest.raises(ValueError, match="'dense' cannot read int8, expected no quantised KV"):
        make_call("dense", batch, sizes)
    with pytest.raises(ValueError, match="platform 'cpu' has no paged attention, expected 'gpu'"):
        paged_call(make_batch([4], 4, make_sizes()), 1.0)
