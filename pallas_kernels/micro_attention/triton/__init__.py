"""MicroAttention in Triton, for NVIDIA GPUs before Hopper."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention.partial import Partial
from pallas_kernels.micro_attention.triton.launch import plan_launch


def micro_attention_triton(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Partial:
    """Attend from every row's tile to its blocks on an NVIDIA GPU; see `contract` for the arrays.

    Where tiles alone do not fill the device, each row's keys are cut into parts whose partials are
    float32 and merged by ScaleReduce, as in Flash-Decoding.

    Raises:
        RuntimeError: jax-triton, Triton or JAX's CUDA plugin is missing.
    """
    # Neither can be imported where there is no CUDA plugin or no Triton.
    try:
        import jax_triton  # pyright: ignore[reportMissingImports] (only in the extra)

        from pallas_kernels.micro_attention.triton.kernel import micro_attention_kernel
    except ImportError as error:
        raise RuntimeError(
            "implementation 'triton' needs jax-triton, Triton and JAX's CUDA plugin: "
            f"install distkv-jax[triton] ({error})"
        ) from error
    launch = plan_launch(q, pool, block_ids, rows, scale=scale, window=window, soft_cap=soft_cap)
    outs, lses = jax_triton.triton_call(
        *kernel_arguments(q, pool, block_ids, block_starts, rows),
        kernel=micro_attention_kernel,
        name="micro_attention",
        grid=launch.grid,
        out_shape=launch.outputs,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **launch.constants,
    )
    return merge_parts(outs, lses, q.dtype)


def kernel_arguments(
    q: Float[Array, "tiles tile q_heads head_dim"],
    pool: KVPool,
    block_ids: Int[Array, " entries"],
    block_starts: Int[Array, " entries"],
    rows: Int[Array, "rows 5"],
) -> tuple[Array, ...]:
    """Put the arrays into the order of the kernel's inputs."""
    data = pool.data
    # Triton refuses the type itself on devices that have no instructions for it.
    if data.dtype == jnp.float8_e4m3fn:
        data = jax.lax.bitcast_convert_type(data, jnp.uint8)
    # A pointer is wanted in any case; without scales it is never followed.
    scales = jnp.zeros(1, jnp.float32) if pool.scales is None else pool.scales
    return q, data, scales, block_ids, block_starts, rows


def merge_parts(
    outs: Float[Array, "parts *rows head_dim"], lses: Float[Array, "parts *rows"], dtype: DTypeLike
) -> Partial:
    """Merge the partials of the parts of the keys, one of them at least, and round them."""
    # Not at the top: scale_reduce imports this package's parent.
    from pallas_kernels.scale_reduce import scale_reduce

    if outs.shape[0] == 1:
        return Partial(outs[0], lses[0])
    merged = scale_reduce(outs, lses)
    return merged._replace(out=merged.out.astype(dtype))


__all__ = ["micro_attention_triton"]
