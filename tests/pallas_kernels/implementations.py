"""The implementations that the shared suite runs, each with sizes that it can take."""

from collections.abc import Callable
from typing import NamedTuple

from pallas_kernels.micro_attention import Partial
from pallas_kernels.micro_attention.cpu import micro_attention_cpu
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


TESTED = {
    "cpu": Tested(micro_attention_cpu),
    "xla": Tested(micro_attention_xla),
}
