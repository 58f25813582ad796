"""The arrays of a step plan, packed into one buffer: one transfer brings a whole step.

A plan is O(blocks + tokens): block lists, one row per tile, one row per output. All of it is int32;
the few floats travel bit for bit.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from distkv_jax.engine.shapes import PlanShape
from pallas_kernels.micro_attention import Row


class PlanArrays(NamedTuple):
    """One instance's part of a step plan, on the device.

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

    tokens: Array
    decode_slots: Array
    positions: Array
    blocks: Array
    block_ids: Array
    block_starts: Array
    decode_own: Array
    prefill_own: Array
    output_own: Array
    decode_spanning: Array
    prefill_spanning: Array
    output_spanning: Array
    decode_foreign: Array
    prefill_foreign: Array
    output_foreign: Array
    output_tokens: Array
    slot: Array
    position: Array
    seed_low: Array
    seed_high: Array
    top_k: Array
    target: Array
    flags: Array
    temperature: Array
    top_p: Array
    min_p: Array
    presence_penalty: Array
    frequency_penalty: Array
    repetition_penalty: Array


FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
FLAG_BAN_STOP, FLAG_ADJUST, FLAG_LOGPROBS = 1, 2, 4


@functools.cache
def sizes(shape: PlanShape) -> Mapping[str, tuple[int, ...]]:
    """The shape of each array of one instance, by name, in the order of `PlanArrays`."""
    tiles = {
        "decode": shape.decode_rows,
        "prefill": shape.prefill_tiles,
        "output": shape.output_rows,
    }
    spanning = {name: shape.spanning_rows(count) for name, count in tiles.items()}
    columns = len(Row)
    known = {
        "tokens": (shape.tokens,),
        "decode_slots": (shape.decode_rows,),
        "positions": (shape.tokens,),
        "blocks": (shape.tokens,),
        "block_ids": (shape.entries,),
        "block_starts": (shape.entries,),
        **{f"{name}_own": (count, columns) for name, count in tiles.items()},
        **{f"{name}_spanning": (count,) for name, count in spanning.items()},
        **{
            f"{name}_foreign": (shape.instances * count, columns)
            for name, count in spanning.items()
        },
    }
    # All others have one number for each output row.
    return {name: known.get(name, (shape.output_rows,)) for name in PlanArrays._fields}


def buffer_size(shape: PlanShape) -> int:
    """Int32 words of one instance's plan."""
    return sum(math.prod(size) for size in sizes(shape).values())


def host_views(
    buffer: Int[np.ndarray, "instances words"], shape: PlanShape
) -> dict[str, np.ndarray]:
    """Name the parts of a host buffer: views, so that writing to them writes the buffer.

    Returns:
        Every array of `PlanArrays` by name, with a leading axis of instances.
    """
    parts: dict[str, np.ndarray] = {}
    at = 0
    for name, size in sizes(shape).items():
        words = math.prod(size)
        part = buffer[:, at : at + words].reshape(len(buffer), *size)
        parts[name] = part.view(np.float32) if name in FLOATS else part
        at += words
    return parts


def device_views(buffer: Int[Array, " words"], shape: PlanShape) -> PlanArrays:
    """Cut one instance's buffer into its arrays."""
    parts: dict[str, Array] = {}
    at = 0
    for name, size in sizes(shape).items():
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
    views["blocks"][:] = num_blocks
    views["slot"][:] = num_slots
    views["decode_slots"][:] = num_slots
    views["target"][:] = -1
    views["top_p"][:] = 1.0
    views["repetition_penalty"][:] = 1.0
    views["decode_spanning"][:] = shape.decode_rows
    views["prefill_spanning"][:] = shape.prefill_tiles
    views["output_spanning"][:] = shape.output_rows
    return buffer
