"""Parts that hand-built Llama weights are put together from.

A number is coded as a row of ±1: every code has the same norm, so RMSNorm is a constant gain, and
codes that differ in one bit are near misses. The residual stream is cut into sections that each
hold one code; attention copies a section of one token into another section of another token. The
MLPs are zero. Scores are in nats: what softmax sees, after 1/sqrt(head_dim).
"""

import itertools
import math
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

Tensors: TypeAlias = dict[str, Float[np.ndarray, "..."]]
"""Weights under their Hugging Face names."""

HIDDEN_SIZE = 32
HEAD_DIM = 32
NUM_ROTARY_PAIRS = HEAD_DIM // 2
RMS_NORM_EPS = 1e-6


def codes(num_bits: int) -> Float[np.ndarray, "numbers bits"]:
    """Return every number below 2**num_bits as a row of ±1."""
    bits = np.arange(2**num_bits)[:, None] >> np.arange(num_bits) & 1
    return (1 - 2 * bits).astype(np.float32)


def sections(*sizes: int) -> list[slice]:
    """Cut the residual stream into consecutive sections."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def norm_gain(num_ones: int) -> float:
    """Return what RMSNorm multiplies a residual of `num_ones` entries ±1, else 0, with."""
    return 1 / math.sqrt(num_ones / HIDDEN_SIZE + RMS_NORM_EPS)


def score_scale(score: float) -> float:
    """Return the size of a query's entry that meets a key's entry 1 with `score` nats."""
    return score * math.sqrt(HEAD_DIM)


def slow_dims(num_bits: int) -> Int[np.ndarray, " bits"]:
    """Return the head's dimensions that RoPE turns least, both of the slowest pair first."""
    pair, half = np.divmod(np.arange(num_bits), 2)
    return NUM_ROTARY_PAIRS - 1 - pair + half * NUM_ROTARY_PAIRS


def to_head(
    section: slice, dims: Int[np.ndarray, " bits"], scale: float
) -> Float[np.ndarray, "head_dim hidden"]:
    """Return a projection that puts a section of the residual, scaled, at `dims` of a head."""
    weight = np.zeros((HEAD_DIM, HIDDEN_SIZE), np.float32)
    weight[dims, np.arange(HIDDEN_SIZE)[section]] = scale
    return weight


def copying_layer(
    layer: int,
    *,
    query: Float[np.ndarray, "head_dim hidden"],
    key: Float[np.ndarray, "head_dim hidden"],
    source: slice,
    gain: float,
    target: slice,
) -> Tensors:
    """Return a decoder layer that copies a section of the attended token's residual.

    Args:
        layer: The layer's index.
        query: Projection of the token that looks.
        key: Projection of the tokens it looks at.
        source: The section it copies from the token it attends to.
        gain: What that token's RMSNorm multiplied the section with; taken back.
        target: The section of the looking token that the copy is added to.
    """
    dims = np.arange(source.stop - source.start)
    prefix = f"model.layers.{layer}."
    return {
        prefix + "input_layernorm.weight": np.ones(HIDDEN_SIZE, np.float32),
        prefix + "self_attn.q_proj.weight": query,
        prefix + "self_attn.k_proj.weight": key,
        prefix + "self_attn.v_proj.weight": to_head(source, dims, 1 / gain),
        prefix + "self_attn.o_proj.weight": to_head(target, dims, 1.0).T.copy(),
        prefix + "post_attention_layernorm.weight": np.ones(HIDDEN_SIZE, np.float32),
        prefix + "mlp.gate_proj.weight": np.zeros((HIDDEN_SIZE, HIDDEN_SIZE), np.float32),
        prefix + "mlp.up_proj.weight": np.zeros((HIDDEN_SIZE, HIDDEN_SIZE), np.float32),
        prefix + "mlp.down_proj.weight": np.zeros((HIDDEN_SIZE, HIDDEN_SIZE), np.float32),
    }
