"""The static sizes of a GPU kernel, chosen from the shapes of a call."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.kv_pool import KVPool, is_quantised

STEP = 64
"""Tokens of keys and values that one matrix multiplication takes."""

QUERIES = 64
"""Rows of a Hopper matrix multiplication: query tokens times heads of one KV head."""

COLUMNS = 64
"""Columns of the output that are staged in shared memory at a time."""

SHARED_BYTES = 227 * 1024
"""Shared memory of a Hopper SM that one CTA may use."""

RESERVED_BYTES = 6 * 1024
"""Of it for reductions, barriers, statistics and alignment."""

MAX_DEPTH = 8
"""Slots of a ring: more would only cost barriers."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a kernel is compiled for.

    A *chunk* is the query rows of one tile and KV head that one consumer group works on; a *ring*
    is a producer warpgroup with its shared-memory slots and the consumers that read them.

    Attributes:
        tiles: Query tiles.
        tile: Tokens of a tile.
        kv_heads: KV heads.
        group: Query heads of a KV head.
        head_dim: Width of a head.
        block_size: Tokens of a block.
        num_blocks: Blocks of the pool.
        num_ctas: CTAs that the work is cut for, one per SM.
        q_dtype: Of the queries and of the result.
        kv_dtype: Of the pool's data.
    """

    tiles: int
    tile: int
    kv_heads: int
    group: int
    head_dim: int
    block_size: int
    num_blocks: int
    num_ctas: int
    q_dtype: np.dtype
    kv_dtype: np.dtype

    @property
    def queries(self) -> int:
        """Query rows of a tile and KV head."""
        return self.tile * self.group

    @property
    def consumers(self) -> int:
        """Consumer warpgroups that share a ring: two where a tile fills both."""
        return 2 if self.queries > QUERIES else 1

    @property
    def rings(self) -> int:
        """Rings of a CTA: two where each has one consumer, so that one loads as one computes."""
        return 3 - self.consumers

    @property
    def num_workers(self) -> int:
        """Rings of all CTAs: what the work is cut for."""
        return self.num_ctas * self.rings

    @property
    def box(self) -> int:
        """Query rows that one consumer loads and stores; it computes `QUERIES`."""
        return min(QUERIES, -(-self.queries // 8) * 8)

    @property
    def chunk(self) -> int:
        """Query rows of a chunk."""
        return self.consumers * self.box

    @property
    def chunks(self) -> int:
        """Chunks of a tile and KV head."""
        return -(-self.queries // self.chunk)

    @property
    def num_segments(self) -> int:
        """Segments (tile, KV head, chunk), named by a row or not."""
        return self.tiles * self.kv_heads * self.chunks

    @property
    def blocks_per_step(self) -> int:
        """Blocks that a step loads."""
        return max(1, STEP // self.block_size)

    @property
    def parts(self) -> int:
        """Steps that a block takes."""
        return max(1, self.block_size // STEP)

    @property
    def load(self) -> int:
        """Tokens of one transfer."""
        return min(STEP, self.block_size)

    @property
    def is_quantised(self) -> bool:
        """Whether the pool's data goes with scales."""
        return is_quantised(self.kv_dtype)

    @property
    def slot_bytes(self) -> int:
        """Shared memory of K and V of one step."""
        scales = 4 if self.is_quantised else 0
        return 2 * STEP * (self.head_dim * self.kv_dtype.itemsize + scales)

    @property
    def depth(self) -> int:
        """Slots of a ring: all that fit."""
        warpgroups = self.rings * self.consumers
        queries = QUERIES * self.head_dim * self.q_dtype.itemsize
        stage = QUERIES * COLUMNS * 4
        plain = STEP * self.head_dim * self.q_dtype.itemsize if self.is_quantised else 0
        free = SHARED_BYTES - RESERVED_BYTES - warpgroups * (queries + stage + plain)
        return min(MAX_DEPTH, free // (self.rings * self.slot_bytes))


def sizes_of(
    q: Float[Array, "tiles tile q_heads head_dim"], pool: KVPool, *, num_ctas: int
) -> Sizes:
    """Read the sizes off a call."""
    tiles, tile, q_heads, head_dim = q.shape
    num_blocks, _, kv_heads, block_size, _ = pool.data.shape
    return Sizes(
        tiles=tiles,
        tile=tile,
        kv_heads=kv_heads,
        group=q_heads // kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        num_blocks=num_blocks,
        num_ctas=num_ctas,
        q_dtype=np.dtype(q.dtype),
        kv_dtype=np.dtype(pool.data.dtype),
    )


def check_block_size(block_size: int) -> None:
    """Refuse blocks that steps cannot be made of.

    Raises:
        ValueError: With what is allowed.
    """
    if block_size % STEP and (STEP % block_size or block_size < 8):
        raise ValueError(
            f"block_size={block_size}, implementation 'gpu' takes 8, 16, 32 and multiples of {STEP}"
        )


def check_hardware_limits(sizes: Sizes) -> None:
    """Refuse what Hopper's matrix units or this kernel cannot do; interpretation can.

    Raises:
        TypeError: A dtype, with those allowed.
        ValueError: A size, with those allowed.
    """
    if sizes.q_dtype not in (np.dtype(jnp.bfloat16), np.dtype(np.float16)):
        raise TypeError(
            f"q is {sizes.q_dtype}, implementation 'gpu' takes bfloat16 and float16: "
            "Hopper has no float32 matrix units"
        )
    if sizes.kv_dtype != sizes.q_dtype and not sizes.is_quantised:
        raise TypeError(
            f"q is {sizes.q_dtype}, pool is {sizes.kv_dtype}, "
            "implementation 'gpu' takes the same dtype for both, or int8 or float8_e4m3fn pools"
        )
    head_dims = (128,) if sizes.is_quantised else (64, 128)
    if sizes.head_dim not in head_dims:
        raise ValueError(
            f"head_dim={sizes.head_dim}, implementation 'gpu' takes one of {head_dims} "
            f"with a pool of {sizes.kv_dtype}"
        )
    if sizes.is_quantised and sizes.block_size < 32:
        raise ValueError(
            f"block_size={sizes.block_size}, implementation 'gpu' takes at least 32 "
            f"with a pool of {sizes.kv_dtype}"
        )
