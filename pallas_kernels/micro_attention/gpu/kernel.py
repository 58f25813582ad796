"""The Mosaic GPU kernel: producers bring K and V by TMA, consumers attend with wgmma.

One CTA runs per SM. It has one or two rings (see `Sizes`), each with a producer warpgroup and one
or two consumers; a ring takes its run of steps from the plan, whichever rows and heads they belong
to, and its consumers write one piece for each segment that they touch. Sources: FlashAttention-3
(arXiv 2407.08608) for the producer and consumer warpgroups; JAX's own
`pallas/ops/gpu/attention_mgpu.py` for its idioms in Mosaic GPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, Num

from pallas_kernels.micro_attention.gpu.consumer import Consumer, Lists, Own, consume
from pallas_kernels.micro_attention.gpu.matrix import Hopper, Interpreted
from pallas_kernels.micro_attention.gpu.plan import Plan
from pallas_kernels.micro_attention.gpu.ring import Ring, Source, produce
from pallas_kernels.micro_attention.gpu.sizes import COLUMNS, QUERIES, STEP, Sizes
from pallas_kernels.micro_attention.gpu.tokens import Attend

PRODUCER_REGISTERS = {1: 32, 2: 40}
CONSUMER_REGISTERS = {1: 224, 2: 232}
"""Registers of a thread, by consumers of a ring: all of an SM's, two by two or one by two."""


def attend_pieces(
    queries: Float[Array, "rows head_dim"],
    data: Num[Array, "tokens head_dim"],
    scales: Float[Array, " tokens"] | None,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    plan: Plan,
    *,
    sizes: Sizes,
    attend: Attend,
    interpret: Any,
) -> tuple[Float[Array, "results head_dim"], Float[Array, " results"]]:
    """Run the kernel.

    Args:
        queries: Of all segments, `Sizes.chunk` rows each.
        data: The pool's data, one row for each token of a block's K or V of one head.
        scales: The same rows' scales, or None.
        block_ids: Block lists.
        block_starts: Block lists.
        plan: Who does what.
        sizes: What to compile for.
        attend: How scores are made.
        interpret: Simulate a GPU.

    Returns:
        Normalised output and lse of the segments' places and then of each worker's two spare ones;
        places that the plan does not use hold anything.
    """
    consumers = sizes.rings * sizes.consumers
    shapes = jax.ShapeDtypeStruct((num_places(sizes) * sizes.chunk, sizes.head_dim), jnp.float32)
    operands = [queries, data, block_ids, block_starts, plan.table, plan.workers]
    if scales is not None:
        operands.append(scales)

    def body(*refs: Any) -> None:
        scales_ref = None if scales is None else refs[6]
        q_ref, data_ref, ids_ref, starts_ref, table, workers = refs[:6]
        out, lse, ring, own = refs[len(operands) :]
        thread = lax.axis_index("warpgroup")
        cta = lax.axis_index("cta") * sizes.rings

        @pl.when(thread < consumers)
        def _() -> None:
            plgpu.set_max_registers(CONSUMER_REGISTERS[sizes.consumers], action="increase")
            index = lax.div(thread, jnp.int32(sizes.consumers))
            consume(
                Consumer(
                    index=lax.rem(thread, jnp.int32(sizes.consumers)),
                    worker=cta + index,
                    first_slot=index * sizes.depth,
                    matrix=Interpreted() if interpret else Hopper(),
                    sizes=sizes,
                    attend=attend,
                    lists=Lists(q_ref, starts_ref, table, workers, out, lse),
                    ring=ring,
                    own=Own(*(None if ref is None else ref.at[thread] for ref in own)),
                )
            )

        @pl.when(thread >= consumers)
        def _() -> None:
            plgpu.set_max_registers(PRODUCER_REGISTERS[sizes.consumers], action="decrease")
            index = thread - consumers
            source = Source(data_ref, scales_ref, ids_ref, table, workers)
            produce(source, ring, cta + index, index * sizes.depth, sizes)

    kernel = plgpu.kernel(
        body,
        out_type=(shapes, jax.ShapeDtypeStruct(shapes.shape[:1], jnp.float32)),
        scratch_types=(ring_types(sizes), own_types(sizes)),
        grid=(sizes.num_ctas,),
        grid_names=("cta",),
        num_threads=sizes.rings + consumers,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
        kernel_name="micro_attention_gpu",
    )
    return kernel(*operands)


def num_places(sizes: Sizes) -> int:
    """Places of the kernel's result: the segments', and two spare ones for each worker."""
    return sizes.num_segments + 2 * sizes.num_workers


def ring_types(sizes: Sizes) -> Ring:
    """Declare the shared memory and the barriers of all rings of a CTA."""
    slots = sizes.rings * sizes.depth
    tokens = matrix_type((slots, STEP, sizes.head_dim), sizes.kv_dtype)
    arrivals = sizes.blocks_per_step * (2 if sizes.is_quantised else 1)
    is_full = plgpu.Barrier(num_arrivals=arrivals, num_barriers=slots)
    is_empty = plgpu.Barrier(num_arrivals=sizes.consumers, num_barriers=slots)
    has_clean = sizes.consumers > 1 and not sizes.is_quantised
    return Ring(
        keys=tokens,
        values=tokens,
        scales=plgpu.SMEM((slots, 2, STEP), jnp.float32) if sizes.is_quantised else None,
        keys_full=is_full,
        values_full=is_full,
        keys_empty=is_empty,
        values_empty=is_empty,
        values_clean=plgpu.Barrier(num_barriers=slots) if has_clean else None,
    )


def own_types(sizes: Sizes) -> Own:
    """Declare what the consumers of a CTA use alone, one after the other."""
    consumers = sizes.rings * sizes.consumers
    plain = matrix_type((consumers, STEP, sizes.head_dim), sizes.q_dtype)
    return Own(
        queries=matrix_type((consumers, QUERIES, sizes.head_dim), sizes.q_dtype),
        queries_full=plgpu.Barrier(num_barriers=consumers),
        stage=plgpu.SMEM((consumers, QUERIES, min(COLUMNS, sizes.head_dim)), jnp.float32),
        stage_lse=plgpu.SMEM((consumers, QUERIES), jnp.float32),
        plain=plain if sizes.is_quantised else None,
    )


def matrix_type(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Declare shared memory as the matrix units want it: in swizzled tiles of 8 rows."""
    swizzle = plgpu.find_swizzle(shape[-1] * dtype.itemsize * 8)
    tiling = (8, swizzle // dtype.itemsize)
    transforms = (plgpu.TilingTransform(tiling), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)
