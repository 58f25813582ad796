"""Where the tokens of a step are, and who sees them."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from pallas_kernels.micro_attention.gpu.matrix import Ref
from pallas_kernels.micro_attention.gpu.sizes import STEP, Sizes
from pallas_kernels.micro_attention.gpu.walk import Piece

NOWHERE = 2**30
"""Position of a block that a step does not have: after every query."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Attend:
    """How scores are made.

    Attributes:
        scale: Factor on every score.
        window: Sliding window in tokens; None for none.
        soft_cap: Scores become soft_cap * tanh(score / soft_cap); None for none.
    """

    scale: float
    window: int | None
    soft_cap: float | None


class Where(NamedTuple):
    """Where the tokens of a step are.

    Attributes:
        starts: Position of the first token of each transfer of the step.
        is_plain: Every token is seen by every query: nothing to mask.
        is_live: Every token is seen by some query of the tile.
    """

    starts: tuple[Int[Array, ""], ...]
    is_plain: Bool[Array, ""]
    is_live: Bool[Array, ""]


def locate(
    block_starts: Ref, piece: Piece, step: Int[Array, ""], sizes: Sizes, attend: Attend
) -> Where:
    """Look up the positions of a step's tokens."""
    part = lax.rem(step - piece.segment, jnp.int32(sizes.parts))
    entry = piece.begin + lax.div(step - piece.segment, jnp.int32(sizes.parts)) * (
        sizes.blocks_per_step
    )
    starts = []
    for block in range(sizes.blocks_per_step):
        start = block_starts[jnp.minimum(entry + block, piece.end - 1)] + part * STEP
        starts.append(jnp.where(entry + block < piece.end, start, NOWHERE))
    # Blocks of a row are in token order.
    last = starts[-1] + sizes.load - 1
    is_plain, is_live = last <= piece.position, last < piece.position + piece.count
    if attend.window is not None:
        is_plain &= starts[0] > piece.position + piece.count - 1 - attend.window
        is_live &= starts[0] > piece.position - attend.window
    return Where(tuple(starts), is_plain, is_live)


def positions(tokens: Int[Array, "..."], where: Where, sizes: Sizes) -> Int[Array, "..."]:
    """Turn the token numbers of a step into positions."""
    at = tokens + where.starts[0]
    for block, start in enumerate(where.starts[1:], 1):
        first = block * sizes.load
        at = jnp.where(tokens >= first, tokens + (start - first), at)
    return at


def is_seen(at: Int[Array, "..."], piece: Piece, attend: Attend) -> Bool[Array, "..."]:
    """Whether some query of the tile sees a position."""
    seen = at < piece.position + piece.count
    if attend.window is not None:
        seen &= at > piece.position - attend.window
    return seen
