"""A token's K and V land in its slot, and nothing else in the pool changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write import kv_write

BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM = 5, 2, 4, 3
POOL = (BLOCKS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)

write = jax.jit(kv_write, donate_argnums=0)


def make_tokens(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, count, KV_HEADS, HEAD_DIM)).astype(np.float32)
    return k, v


@pytest.mark.parametrize("seed", range(3))
def test_every_token_lands_in_its_slot_and_padding_nowhere(seed: int) -> None:
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
    written = write(jnp.asarray(pool), k, v, np.int32(blocks), np.int32(slots))

    np.testing.assert_array_equal(written, expected)


def test_what_is_written_is_rounded_to_the_pools_dtype() -> None:
    k, v = make_tokens(1)
    where = np.array([1], np.int32)

    written = write(jnp.zeros(POOL, jnp.bfloat16), k, v, where, where)

    assert written.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written[1, 0, :, 1], k[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(written[1, 1, :, 1], v[0].astype(jnp.bfloat16))


def test_a_donated_pool_is_updated_in_place() -> None:
    k, v = make_tokens(1)
    where = np.array([1], np.int32)
    pool = jnp.zeros(POOL)
    address = pool.unsafe_buffer_pointer()

    written = write(pool, k, v, where, where)

    assert written.unsafe_buffer_pointer() == address
