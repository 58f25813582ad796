"""A token's K and V land in its slot, and nothing else in the pool changes, by XLA or natively."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_pool import KVPool, empty_pool
from pallas_kernels.kv_write import kv_write
from pallas_kernels.micro_attention.cpu import kv_write_cpu

BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM = 5, 2, 4, 3
POOL = (BLOCKS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)

WRITES = {
    "cpu": jax.jit(kv_write_cpu, donate_argnums=0),
    "xla": jax.jit(kv_write, donate_argnums=0),
}
parametrize_write = pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))


def make_tokens(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, count, KV_HEADS, HEAD_DIM)).astype(np.float32)
    return k, v


@parametrize_write
@pytest.mark.parametrize("seed", range(3))
def test_every_token_lands_in_its_slot_and_padding_nowhere(
    write: Callable[..., KVPool], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=POOL).astype(np.float32)
    k, v = make_tokens(9, seed)
    places = rng.permutation(BLOCKS * BLOCK_SIZE)[:9]
    blocks, slots = places // BLOCK_SIZE, places % BLOCK_SIZE
    blocks[[2, 5, 8]] = BLOCKS  # padding, all in one slot
    slots[[2, 5, 8]] = 0

    expected = pool.copy()
    for token, (block, slot) in enumerate(zip(blocks, slots, strict=True)):
        if block < BLOCKS:
            expected[block, 0, :, slot] = k[token]
            expected[block, 1, :, slot] = v[token]
    written = write(KVPool(jnp.asarray(pool)), k, v, np.int32(blocks), np.int32(slots))

    np.testing.assert_array_equal(written.data, expected)


@parametrize_write
def test_what_is_written_is_rounded_to_the_pools_dtype(write: Callable[..., KVPool]) -> None:
    k, v = make_tokens(1)
    where = np.array([1], np.int32)

    written = write(empty_pool(POOL, np.dtype(jnp.bfloat16)), k, v, where, where)

    assert written.data.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written.data[1, 0, :, 1], k[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(written.data[1, 1, :, 1], v[0].astype(jnp.bfloat16))


@parametrize_write
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_a_donated_pool_is_updated_in_place(write: Callable[..., KVPool], dtype: type) -> None:
    k, v = make_tokens(1)
    where = np.array([1], np.int32)
    pool = empty_pool(POOL, np.dtype(dtype))
    addresses = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(pool)]

    written = write(pool, k, v, where, where)

    assert [array.unsafe_buffer_pointer() for array in jax.tree.leaves(written)] == addresses


@pytest.mark.parametrize("kv_dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_write_the_same_bits(dtype: type, kv_dtype: type) -> None:
    tokens, head_dim = 128, 128
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, tokens, KV_HEADS, head_dim)).astype(np.float32)
    # Numbers of any size: next to the largest of a vector most are subnormal in float8.
    v *= np.exp(4 * rng.normal(size=v.shape)).astype(np.float32)
    k[0] = 0
    # Whole and half numbers with a scale of 1: ties, both ways.
    v[1:3] = np.clip(np.round(2 * v[1:3]) / 2, -100, 100)
    v[1:3, :, 0] = 127
    places = np.int32(rng.permutation(tokens))
    shape = (8, 2, KV_HEADS, 16, head_dim)
    arrays = jnp.asarray(k, dtype), jnp.asarray(v, dtype), places // 16, places % 16

    cpu, xla = (write(empty_pool(shape, np.dtype(kv_dtype)), *arrays) for write in WRITES.values())

    for ours, theirs in zip(jax.tree.leaves(cpu), jax.tree.leaves(xla), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_native_one_refuses_other_dtypes() -> None:
    k = jnp.zeros((1, KV_HEADS, HEAD_DIM), jnp.float16)
    where = jnp.array([1], jnp.int32)

    with pytest.raises(
        TypeError,
        match="k is float16, v is float16, pool is float32, expected k and v both one of float32, "
        "bfloat16, pool one of float32, bfloat16, int8, float8_e4m3fn",
    ):
        kv_write_cpu(empty_pool(POOL, np.dtype(np.float32)), k, k, where, where)
