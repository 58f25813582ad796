"""The implementations that the shared suite runs, each with sizes that it can take."""

import functools
from collections.abc import Callable
from typing import NamedTuple

# The only import of JAX's insides, and in tests alone: without these parameters the Hopper kernel's
# numbers could not be checked where there is no GPU.
from jax._src.pallas.mosaic_gpu.interpret.params import (  # jax 0.10.2 exports them nowhere
    InterpretGPUParams,
)
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.micro_attention import Partial
from pallas_kernels.micro_attention.cpu import instruction_sets, micro_attention_cpu
from pallas_kernels.micro_attention.gpu import micro_attention_gpu
from pallas_kernels.micro_attention.tpu import micro_attention_tpu
from pallas_kernels.micro_attention.tpu.sizes import Sizes
from pallas_kernels.micro_attention.xla import micro_attention_xla


class Tested(NamedTuple):
    """One implementation under test.

    Attributes:
        call: As `micro_attention`, without `implementation`.
        block_size: Tokens of a block in its cases.
        head_dim: Width of a head in its cases.
    """

    call: Callable[..., Partial]
    block_size: int = 4
    head_dim: int = 8


INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
# So small that a row has several fetches, of several steps, that end anywhere.
SMALL = Sizes(cores=1, fetch_blocks=4, step_blocks=2, step_heads=1)

TESTED = {
    "cpu": Tested(micro_attention_cpu),
    # One block a step, since simulating is slow to compile, and the narrowest head for int8.
    "gpu-interpret": Tested(
        functools.partial(micro_attention_gpu, interpret=InterpretGPUParams()),
        block_size=64,
        head_dim=32,
    ),
    # The smallest that the TPU takes for every dtype.
    "tpu-interpret": Tested(
        functools.partial(micro_attention_tpu, interpret=INTERPRET, sizes=SMALL),
        block_size=32,
        head_dim=64,
    ),
    "xla": Tested(micro_attention_xla),
} | {
    # "cpu" is the best of these; here several vectors and a rest make up a head.
    f"cpu-{name}": Tested(
        functools.partial(micro_attention_cpu, instruction_set=name), block_size=8, head_dim=72
    )
    for name in instruction_sets()
}
