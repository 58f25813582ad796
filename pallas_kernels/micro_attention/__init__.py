"""MicroAttention: attention of query tiles over the local blocks of a pool, returning partials."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row, check_shapes
from pallas_kernels.micro_attention.cpu import micro_attention_cpu
from pallas_kernels.micro_attention.gpu import micro_attention_gpu
from pallas_kernels.micro_attention.partial import Partial
from pallas_kernels.micro_attention.tpu import micro_attention_tpu
from pallas_kernels.micro_attention.triton import micro_attention_triton
from pallas_kernels.micro_attention.xla import micro_attention_xla

IMPLEMENTATIONS: dict[str, Callable[..., Partial]] = {
    "cpu": micro_attention_cpu,
    "gpu": micro_attention_gpu,
    "tpu": micro_attention_tpu,
    "triton": micro_attention_triton,
    "xla": micro_attention_xla,
}


def micro_attention(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> Partial:
    """Attend from every row's tile to its range of the block lists.

    The arrays are described in `contract`. A query sees keys at positions up to its own, and with a
    window only the last `window` of them, itself included.

    Args:
        q: Query tiles.
        pool: Keys and values of one layer on this device.
        block_ids: Block lists.
        block_starts: Position of each listed block's first token.
        rows: Work: one row per tile in use, columns as in `Row`.
        scale: Factor on every score.
        window: Sliding window in tokens; None for none.
        soft_cap: Scores become soft_cap * tanh(score / soft_cap); None for none.
        implementation: A name in `IMPLEMENTATIONS`: it runs, or fails loudly. None is "xla", which
            runs everywhere; what is best for a device and these shapes is chosen before anything is
            traced, by `distkv_jax.attention.choose_implementation`.

    Returns:
        A `Partial` of shape (tiles, tile, q_heads): (0, -inf) for tokens that saw nothing.

    Raises:
        ValueError: The shapes cannot work together, or the implementation is unknown.
    """
    check_shapes(q, pool, block_ids, block_starts, rows, window=window)
    name = implementation or "xla"
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={name!r} is unknown, expected one of {sorted(IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[name](
        q, pool, block_ids, block_starts, rows, scale=scale, window=window, soft_cap=soft_cap
    )


__all__ = ["IMPLEMENTATIONS", "Partial", "Row", "micro_attention"]
