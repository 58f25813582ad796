"""Rows that the native kernel cuts into runs come out as if they were whole, whoever is beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import Partial
from pallas_kernels.micro_attention.cpu import instruction_sets, micro_attention_cpu
from pallas_kernels.micro_attention.reference import micro_attention_reference

BLOCK_SIZE, HEAD_DIM = 16, 8
LENGTHS = (1, 700, 1030, 512, 513)


def make_arrays(
    lengths: tuple[int, ...], heads: tuple[int, int]
) -> tuple[np.ndarray, KVPool, np.ndarray, np.ndarray, np.ndarray]:
    """One decode row per length; the same sequences have the same blocks in any batch."""
    q_heads, kv_heads = heads
    per_seq = -(-max(LENGTHS) // BLOCK_SIZE)
    rng = np.random.default_rng(0)
    shape = (len(LENGTHS) * per_seq, 2, kv_heads, BLOCK_SIZE, HEAD_DIM)
    data = rng.normal(size=shape).astype(np.float32)
    q = rng.normal(size=(len(LENGTHS), 1, q_heads, HEAD_DIM)).astype(np.float32)
    blocks = rng.permutation(len(data)).astype(np.int32).reshape(len(LENGTHS), per_seq)
    rows = [
        (row, row * per_seq, row * per_seq - (-length // BLOCK_SIZE), length - 1, 1)
        for row, length in enumerate(LENGTHS)
        if length in lengths
    ]
    starts = np.tile(np.arange(per_seq, dtype=np.int32) * BLOCK_SIZE, len(LENGTHS))
    pool = KVPool(data)  # pyright: ignore[reportArgumentType] (NumPy's)
    return q, pool, blocks.reshape(-1), starts, np.array(rows, np.int32)


@functools.cache
def attend(instruction_set: str, lengths: tuple[int, ...], heads: tuple[int, int]) -> Partial:
    call = functools.partial(micro_attention_cpu, scale=1.0, instruction_set=instruction_set)
    return jax.jit(call)(*jax.tree.map(jnp.asarray, make_arrays(lengths, heads)))


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("heads", [(4, 2), (20, 1)], ids=["few queries", "many queries"])
def test_long_rows_equal_the_reference(instruction_set: str, heads: tuple[int, int]) -> None:
    out, lse = micro_attention_reference(*make_arrays(LENGTHS, heads), scale=1.0)

    partial = attend(instruction_set, LENGTHS, heads)

    np.testing.assert_allclose(partial.out, out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(partial.lse, lse, rtol=1e-5)


@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_a_row_does_not_depend_on_the_others(row: int) -> None:
    [best, *_] = instruction_sets()

    together = attend(best, LENGTHS, (4, 2))
    alone = attend(best, (LENGTHS[row],), (4, 2))

    np.testing.assert_array_equal(alone.out[row], together.out[row])
    np.testing.assert_array_equal(alone.lse[row], together.lse[row])
