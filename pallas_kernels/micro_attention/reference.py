"""MicroAttention, slow and written to be believed: NumPy loops over rows, tokens and heads."""

import numpy as np
from jaxtyping import Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.contract import Row


def micro_attention_reference(
    q: Float[np.ndarray, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[np.ndarray, " entries"],
    block_starts: Int[np.ndarray, " entries"],
    rows: Int[np.ndarray, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[
    Float[np.ndarray, "tiles tile q_heads head_dim"], Float[np.ndarray, "tiles tile q_heads"]
]:
    """Compute in float64 what every implementation must compute.

    Returns:
        The normalised output and the natural log-sum-exp of each query; (0, -inf) if it saw none.
    """
    tiles, tile, q_heads, head_dim = q.shape
    kv_heads, block_size = pool.data.shape[2:4]
    numbers = np.asarray(pool.data).astype(np.float64)
    if pool.scales is not None:
        numbers *= np.asarray(pool.scales, np.float64)[..., None]
    out = np.zeros((tiles, tile, q_heads, head_dim))
    lse = np.full((tiles, tile, q_heads), -np.inf)
    for row in rows:
        for token in range(row[Row.COUNT]):
            at = row[Row.POSITION] + token
            seen = [
                (block_ids[entry], slot)
                for entry in range(row[Row.BEGIN], row[Row.END])
                for slot in range(block_size)
                if block_starts[entry] + slot <= at
                and (window is None or block_starts[entry] + slot > at - window)
            ]
            if not seen:
                continue
            for head in range(q_heads):
                kv_head = head // (q_heads // kv_heads)
                keys = np.array([numbers[block, 0, kv_head, slot] for block, slot in seen])
                values = np.array([numbers[block, 1, kv_head, slot] for block, slot in seen])
                scores = keys @ q[row[Row.TILE], token, head].astype(np.float64) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                out[row[Row.TILE], token, head] = weights @ values / weights.sum()
                lse[row[Row.TILE], token, head] = scores.max() + np.log(weights.sum())
    return out, lse
