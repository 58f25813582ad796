"""How much of a pool the TPU kernel holds at once, and which shapes it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row

HEAD_DIMS = (64, 128, 256)
MAX_BLOCK_SIZE = 256
QUERY_DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16))

SCALAR_BYTES = 2**20
"""Scalar memory of one core, on v5e, v5p and v6e."""
SCALAR_RESERVE = 2**13
"""What the compiler needs of it for itself."""

FETCH_BYTES = 2**20
"""Of one fetch. Two are in flight or in use, and bandwidth times latency is 1 to 3 MB."""
STEP_TOKENS = 512
"""Tokens of one step of the matrix unit: four of its tiles, to hide each one's latency."""
SCORES = 2**16
"""Scores computed at once, at most, while there is more than one KV head: 64 registers' worth."""
CORE_BYTES = 2**16
"""Of one core's half of a block, at least: below, one transfer for all heads is better."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The knobs of the kernel; none of them changes a result beyond rounding.

    Attributes:
        cores: Parts that the KV heads are cut into: chips whose two cores act as one run them side
            by side, others one after the other.
        fetch_blocks: Blocks of one fetch, a multiple of `step_blocks`; two fetches are held.
        step_blocks: Blocks of one step of computation.
        step_heads: KV heads of one step of computation.
    """

    cores: int
    fetch_blocks: int
    step_blocks: int
    step_heads: int


def sublanes(dtype: np.dtype) -> int:
    """Rows of one tile of memory: 8 words of 32 bits, packed."""
    return 32 // dtype.itemsize


def padded_queries(queries: int, dtype: np.dtype) -> int:
    """Round one KV head's query rows up to whole tiles."""
    return -(-queries // sublanes(dtype)) * sublanes(dtype)


def choose_sizes(pool: KVPool, queries: int, dtype: np.dtype) -> Sizes:
    """Choose the knobs from shapes alone, so that a plan bucket has one program everywhere.

    Args:
        pool: The pool to read.
        queries: Query rows of one KV head.
        dtype: Of the queries.
    """
    kv_heads, block_size, head_dim = pool.data.shape[2:]
    block_bytes = 2 * kv_heads * block_size * head_dim * pool.data.dtype.itemsize
    # Half of the queries, and half of the heads' scales, must be whole tiles too.
    can_halve = kv_heads % 2 == 0 and kv_heads // 2 * queries % 8 == 0
    if pool.scales is not None:
        can_halve = kv_heads % 16 == 0
    cores = 2 if can_halve and block_bytes // 2 >= CORE_BYTES else 1
    fetch_blocks = max(1, FETCH_BYTES * cores // block_bytes)
    step_blocks = min(fetch_blocks, STEP_TOKENS // block_size)
    heads = kv_heads // cores
    scores = padded_queries(queries, dtype) * step_blocks * block_size
    fitting = [n for n in range(2, heads + 1) if heads % n == 0 and n * scores <= SCORES]
    return Sizes(
        cores=cores,
        fetch_blocks=fetch_blocks // step_blocks * step_blocks,
        step_blocks=step_blocks,
        step_heads=max(fitting, default=1),
    )


def check_tpu(q: jax.Array, pool: KVPool, *, num_entries: int, num_rows: int) -> None:
    """Refuse what the kernel cannot run.

    Raises:
        ValueError: The first rule that is broken, with the numbers.
    """
    block_size, head_dim = pool.data.shape[3:]
    packing = sublanes(pool.data.dtype)
    if q.dtype not in QUERY_DTYPES:
        raise ValueError(f"q is {q.dtype}, on TPU it must be float32 or bfloat16")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim={head_dim}, on TPU it must be one of {HEAD_DIMS}")
    if block_size % packing or not 16 <= block_size <= MAX_BLOCK_SIZE:
        raise ValueError(
            f"block_size={block_size}, on TPU it must be a multiple of {packing} from 16 "
            f"to {MAX_BLOCK_SIZE} for a pool of {pool.data.dtype}"
        )
    scalar_bytes = 4 * (2 * num_entries + len(Row) * num_rows)
    if scalar_bytes > SCALAR_BYTES - SCALAR_RESERVE:
        raise ValueError(
            f"{num_entries} list entries and {num_rows} rows need {scalar_bytes} bytes of scalar "
            f"memory, a TPU core has {SCALAR_BYTES - SCALAR_RESERVE} for them: "
            "use larger blocks or fewer"
        )
