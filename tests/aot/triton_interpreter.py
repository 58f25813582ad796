"""Run MicroAttention's Triton kernel on NumPy arrays, in Triton's interpreter.

The interpreter must be asked for (TRITON_INTERPRET=1) before Triton is first imported.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Triton is not installed where the code is checked.
from triton import jit  # pyright: ignore[reportMissingImports]
from triton import language as tl  # pyright: ignore[reportMissingImports]
from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]

from pallas_kernels.micro_attention import Partial
from pallas_kernels.micro_attention.triton import kernel as kernels
from pallas_kernels.micro_attention.triton import kernel_arguments, merge_parts
from pallas_kernels.micro_attention.triton.kernel import to_numbers
from pallas_kernels.micro_attention.triton.launch import plan_launch
from tests.pallas_kernels.test_micro_attention import Case, Options

# Without Triton, pyright takes the kernel for a plain function.
KERNEL: Any = kernels.micro_attention_kernel


class HostTensor:
    """As much of torch's tensor as the interpreter asks for: memory that it reads and writes."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = array.dtype.name

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    # The interpreter copies storages to the host and back; this one is there already.
    def untyped_storage(self) -> "HostTensor":
        return self

    def cpu(self) -> "HostTensor":
        return self

    def copy_(self, other: "HostTensor") -> None:
        assert other is self

    def new_empty(self, *_: Any, **__: Any) -> "HostTensor":
        return self

    def set_(self, storage: "HostTensor", *_: Any) -> None:
        assert storage is self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


def go_through_float32() -> None:
    """Teach the interpreter bfloat16, whose bits it takes for integers in some places."""
    builder = interpreter.InterpreterBuilder
    dot, convert = builder.create_dot, builder.create_si_to_fp

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        wide = [self.create_fp_ext(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *others)

    def create_si_to_fp(self: Any, x: Any, dtype: Any) -> Any:
        if dtype.scalar != tl.bfloat16:
            return convert(self, x, dtype)
        return self.create_fp_trunc(convert(self, x, tl.float32), tl.bfloat16)

    builder.create_dot, builder.create_si_to_fp = create_dot, create_si_to_fp


go_through_float32()


def run(
    case: Case, scale: float, options: Options, *, keys: int | None, splits: int | None
) -> Partial:
    """Call the kernel as `micro_attention_triton` does; outputs start as NaN.

    Args:
        case: Arrays.
        scale: Factor on every score.
        options: Window and soft cap.
        keys: Slots of an iteration; None for the choice of `plan_launch`.
        splits: Parts of the keys; None for the choice of `plan_launch`.
    """
    arrays = jax.tree.map(jnp.asarray, case.arrays)
    q, pool, block_ids, _, rows = arrays
    launch = plan_launch(
        q, pool, block_ids, rows, scale=scale, **options._asdict(), keys=keys, splits=splits
    )
    assert math.prod(launch.grid) > 0
    inputs = [np.array(array) for array in kernel_arguments(*arrays)]
    outputs = [np.full(output.shape, np.nan, output.dtype) for output in launch.outputs]
    KERNEL[launch.grid](*map(HostTensor, inputs), *map(HostTensor, outputs), **launch.constants)
    outs, lses = map(jnp.asarray, outputs)
    return merge_parts(outs, lses, q.dtype)


@jit
def convert_kernel(data_ptr, numbers_ptr, COUNT: tl.constexpr):
    """Convert COUNT numbers as the kernel does."""
    offsets = tl.arange(0, 256)
    data = tl.load(data_ptr + offsets, mask=offsets < COUNT, other=0)
    tl.store(numbers_ptr + offsets, to_numbers(data, tl.float32), mask=offsets < COUNT)


def convert_float8(data: np.ndarray) -> np.ndarray:
    """Convert up to 256 float8_e4m3fn, given as bits."""
    numbers = np.full(data.size, np.nan, np.float32)
    kernel: Any = convert_kernel
    kernel[(1,)](HostTensor(data), HostTensor(numbers), COUNT=data.size)
    return numbers
