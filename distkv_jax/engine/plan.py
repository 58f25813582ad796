"""The arrays of a step plan, packed into one buffer: one transfer brings a whole step.

A plan is O(blocks + tokens): block lists, one row per tile, one row per output. All of it is int32;
the few floats travel bit for bit.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from distkv_jax.engine.shapes import PlanShape
from pallas_kernels.micro_attention import Row


class PlanArrays(NamedTuple):
    """A step plan as arrays: of one instance on the device, with a leading axis on the host.

    Attributes:
        tokens: Token ids; -1 in a decode row means the slot's last sampled token.
        decode_slots: Slot of each decode row.
        positions: Position of each token.
        blocks: Block that receives each token's K and V; one past the last drops it.
        block_ids: Block lists, the sequences of this step one after the other.
        block_starts: Position of the first token of each listed block.
        decode_own, prefill_own, output_own: Work of own tiles (columns: `micro_attention.Row`).
        decode_spanning, prefill_spanning, output_spanning: Own tiles with blocks elsewhere.
        decode_foreign, prefill_foreign, output_foreign: Work of gathered tiles over own blocks.
        output_tokens: Which token each output row is.
        slot, position, seed_low, seed_high, top_k, target, flags: Of each output row, see
            `sampler.RowParams`; flags as in `FLAG_*`.
        temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty:
            Floats, as bits.
    """

    tokens: Array | np.ndarray
    decode_slots: Array | np.ndarray
    positions: Array | np.ndarray
    blocks: Array | np.ndarray
    block_ids: Array | np.ndarray
    block_starts: Array | np.ndarray
    decode_own: Array | np.ndarray
    prefill_own: Array | np.ndarray
    output_own: Array | np.ndarray
    decode_spanning: Array | np.ndarray
    prefill_spanning: Array | np.ndarray
    output_spanning: Array | np.ndarray
    decode_foreign: Array | np.ndarray
    prefill_foreign: Array | np.ndarray
    output_foreign: Array | np.ndarray
    output_tokens: Array | np.ndarray
    slot: Array | np.ndarray
    position: Array | np.ndarray
    seed_low: Array | np.ndarray
    seed_high: Array | np.ndarray
    top_k: Array | np.ndarray
    target: Array | np.ndarray
    flags: Array | np.ndarray
    temperature: Array | np.ndarray
    top_p: Array | np.ndarray
    min_p: Array | np.ndarray
    presence_penalty: Array | np.ndarray
    frequency_penalty: Array | np.ndarray
    repetition_penalty: Array | np.ndarray


FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
FLAG_BAN_STOP, FLAG_ADJUST, FLAG_LOGPROBS = 1, 2, 4


def sizes(shape: PlanShape) -> PlanArrays:
    """The shape of each array of one instance, as a `PlanArrays` of tuples."""
    decode, prefill, output = shape.decode_rows, shape.prefill_tiles, shape.output_rows
    rows = (output,)

    def spanning(tiles: int) -> tuple[int]:
        return (shape.spanning_rows(tiles),)

    def foreign(tiles: int) -> tuple[int, int]:
        return (shape.instances * shape.spanning_rows(tiles), len(Row))

    return PlanArrays(
        tokens=(shape.tokens,),
        decode_slots=(decode,),
        positions=(shape.tokens,),
        blocks=(shape.tokens,),
        block_ids=(shape.entries,),
        block_starts=(shape.entries,),
        decode_own=(decode, len(Row)),
        prefill_own=(prefill, len(Row)),
        output_own=(output, len(Row)),
        decode_spanning=spanning(decode),
        prefill_spanning=spanning(prefill),
        output_spanning=spanning(output),
        decode_foreign=foreign(decode),
        prefill_foreign=foreign(prefill),
        output_foreign=foreign(output),
        output_tokens=rows,
        **{name: rows for name in PlanArrays._fields[PlanArrays._fields.index("slot") :]},
    )


def buffer_size(shape: PlanShape) -> int:
    """Int32 words of one instance's plan."""
    return sum(math.prod(size) for size in sizes(shape))


def host_views(buffer: Int[np.ndarray, "instances words"], shape: PlanShape) -> PlanArrays:
    """Name the parts of a host buffer: views, so that writing to them writes the buffer."""
    parts = {}
    at = 0
    for name, size in sizes(shape)._asdict().items():
        words = math.prod(size)
        part = buffer[:, at : at + words].reshape(len(buffer), *size)
        parts[name] = part.view(np.float32) if name in FLOATS else part
        at += words
    return PlanArrays(**parts)


def device_views(buffer: Int[Array, " words"], shape: PlanShape) -> PlanArrays:
    """Cut one instance's buffer into its arrays."""
    parts = {}
    at = 0
    for name, size in sizes(shape)._asdict().items():
        words = math.prod(size)
        part = lax.slice_in_dim(buffer, at, at + words).reshape(size)
        is_float = name in FLOATS
        parts[name] = lax.bitcast_convert_type(part, jnp.float32) if is_float else part
        at += words
    return PlanArrays(**parts)


def empty_buffer(shape: PlanShape, *, num_blocks: int, num_slots: int) -> np.ndarray:
    """A plan in which nothing runs: every row padding, every write dropped.

    Args:
        shape: Sizes of the step.
        num_blocks: Blocks of an instance's pool; that index drops a write.
        num_slots: Slots of the sampler; that index drops a sampled token.
    """
    buffer = np.zeros((shape.instances, buffer_size(shape)), np.int32)
    views = host_views(buffer, shape)
    views.blocks[:] = num_blocks
    views.slot[:] = num_slots
    views.decode_slots[:] = num_slots
    views.target[:] = -1
    views.top_p[:] = 1.0
    views.repetition_penalty[:] = 1.0
    for spanning, tiles in (
        (views.decode_spanning, shape.decode_rows),
        (views.prefill_spanning, shape.prefill_tiles),
        (views.output_spanning, shape.output_rows),
    ):
        spanning[:] = tiles
    return buffer
