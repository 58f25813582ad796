"""The walk of a worker over its steps, the same for its producer and its consumers."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.micro_attention.contract import Row
from pallas_kernels.micro_attention.gpu.matrix import Ref
from pallas_kernels.micro_attention.gpu.plan import FIRST, STEPS
from pallas_kernels.micro_attention.gpu.sizes import Sizes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A worker's part of a segment.

    Attributes:
        begin: First entry of the segment's row.
        end: One past its last entry.
        position: Position of the tile's first token.
        count: Tokens of the tile in use.
        head: KV head of the segment.
        chunk: Chunk of the tile and head.
        place: Place of the segment.
        segment: The segment's first step.
        segment_end: One past its last.
        step: The piece's first step.
        stop: One past its last.
    """

    begin: Int[Array, ""]
    end: Int[Array, ""]
    position: Int[Array, ""]
    count: Int[Array, ""]
    head: Int[Array, ""]
    chunk: Int[Array, ""]
    place: Int[Array, ""]
    segment: Int[Array, ""]
    segment_end: Int[Array, ""]
    step: Int[Array, ""]
    stop: Int[Array, ""]


def walk(
    table: Ref, workers: Ref, worker: Int[Array, ""], sizes: Sizes, visit: Callable[[Piece], None]
) -> None:
    """Visit the pieces of a worker in order."""
    first, stop_at = workers[worker, 0], workers[worker, 1]
    segments = sizes.kv_heads * sizes.chunks

    def go_on(at: tuple[Array, Array]) -> Array:
        return at[0] < stop_at

    def advance(at: tuple[Array, Array]) -> tuple[Array, Array]:
        step, row = at
        steps, row_first = table[row, STEPS], table[row, FIRST]
        # A row of no steps is stepped over: its piece is empty.
        segment = lax.div(step - row_first, jnp.maximum(steps, 1))
        segment_first = row_first + segment * steps
        stop = jnp.minimum(stop_at, segment_first + steps)

        @pl.when(stop > step)
        def _() -> None:
            visit(
                Piece(
                    begin=table[row, Row.BEGIN],
                    end=table[row, Row.END],
                    position=table[row, Row.POSITION],
                    count=table[row, Row.COUNT],
                    head=lax.div(segment, jnp.int32(sizes.chunks)),
                    chunk=lax.rem(segment, jnp.int32(sizes.chunks)),
                    place=table[row, Row.TILE] * segments + segment,
                    segment=segment_first,
                    segment_end=segment_first + steps,
                    step=step,
                    stop=stop,
                )
            )

        return stop, jnp.where(stop >= row_first + steps * segments, row + 1, row)

    lax.while_loop(go_on, advance, (first, workers[worker, 2]))
