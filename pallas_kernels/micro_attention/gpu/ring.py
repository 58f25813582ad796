"""A ring of shared memory: its slots, its barriers, and the producer warpgroup that fills it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int

from pallas_kernels.micro_attention.gpu.matrix import Ref
from pallas_kernels.micro_attention.gpu.sizes import STEP, Sizes
from pallas_kernels.micro_attention.gpu.walk import Piece, walk


class Ring(NamedTuple):
    """Shared memory of a CTA's rings, and the barriers between producers and consumers.

    Slots count through the rings, `Sizes.depth` each.

    Attributes:
        keys: (slots, STEP, head_dim).
        values: The same.
        scales: (slots, 2, STEP) where the pool is quantised, else None.
        keys_full: Arrive when a slot's keys are there.
        values_full: The same for its values.
        keys_empty: Arrive when all consumers are done with a slot's keys.
        values_empty: The same for its values.
        values_clean: Arrive when the first of two consumers has zeroed dead values; else None.
    """

    keys: Ref
    values: Ref
    scales: Ref | None
    keys_full: Ref
    values_full: Ref
    keys_empty: Ref
    values_empty: Ref
    values_clean: Ref | None


class Source(NamedTuple):
    """Global memory that a ring is filled from.

    Attributes:
        data: (blocks * 2 * kv_heads * block_size, head_dim).
        scales: The same rows, one number each; None where the pool is not quantised.
        block_ids: Block lists.
        table: Of the plan.
        workers: Of the plan.
    """

    data: Ref
    scales: Ref | None
    block_ids: Ref
    table: Ref
    workers: Ref


def produce(
    source: Source, ring: Ring, worker: Int[Array, ""], first_slot: Int[Array, ""], sizes: Sizes
) -> None:
    """Bring the keys and values of a worker's steps, as the `depth` slots of its ring get free."""

    def rows_of(piece: Piece, step: Int[Array, ""]) -> list[Int[Array, ""]]:
        """First row of each block's keys; the values are `kv_heads` matrices further."""
        part = lax.rem(step - piece.segment, jnp.int32(sizes.parts))
        entry = piece.begin + lax.div(step - piece.segment, jnp.int32(sizes.parts)) * (
            sizes.blocks_per_step
        )
        rows = []
        for block in range(sizes.blocks_per_step):
            # A block that the row does not have is its last one again, and masked.
            block_id = source.block_ids[jnp.minimum(entry + block, piece.end - 1)]
            block_id = jnp.clip(block_id, 0, sizes.num_blocks - 1)
            matrix = block_id * (2 * sizes.kv_heads) + piece.head
            rows.append(matrix * sizes.block_size + part * STEP)
        return rows

    def load(rows: list[Int[Array, ""]], part: int, slot: Int[Array, ""]) -> None:
        kinds = ((ring.keys, ring.keys_full), (ring.values, ring.values_full))
        into, barrier = kinds[part]
        for block, row in enumerate(rows):
            first = row + part * sizes.kv_heads * sizes.block_size
            tokens = pl.ds(block * sizes.load, sizes.load)
            plgpu.copy_gmem_to_smem(
                source.data.at[pl.ds(first, sizes.load)], into.at[slot, tokens], barrier.at[slot]
            )
            if source.scales is not None and ring.scales is not None:
                plgpu.copy_gmem_to_smem(
                    source.scales.at[pl.ds(first, sizes.load)],
                    ring.scales.at[slot, part, tokens],
                    barrier.at[slot],
                )

    def visit(piece: Piece) -> None:
        @pl.loop(piece.step, piece.stop)
        def _(step: Int[Array, ""]) -> None:
            # Looked up before the slot is free, so that nothing waits for it.
            rows = rows_of(piece, step)
            slot = first_slot + lax.rem(step - first, jnp.int32(sizes.depth))
            plgpu.barrier_wait(ring.keys_empty.at[slot])
            load(rows, 0, slot)
            plgpu.barrier_wait(ring.values_empty.at[slot])
            load(rows, 1, slot)

    first = source.workers[worker, 0]
    walk(source.table, source.workers, worker, sizes, visit)

    # Shared memory and barriers are the consumers' until they are done with every slot.
    @pl.loop(first_slot, first_slot + sizes.depth)
    def _(slot: Int[Array, ""]) -> None:
        plgpu.barrier_wait(ring.keys_empty.at[slot])
        plgpu.barrier_wait(ring.values_empty.at[slot])
