"""MicroAttention and writing KV in C++ for CPUs, through XLA's foreign function interface."""

from pallas_kernels.micro_attention.cpu.attention import micro_attention_cpu
from pallas_kernels.micro_attention.cpu.build import instruction_sets, is_loaded, load
from pallas_kernels.micro_attention.cpu.dtypes import takes
from pallas_kernels.micro_attention.cpu.kv_write import kv_write_cpu

__all__ = [
    "instruction_sets",
    "is_loaded",
    "kv_write_cpu",
    "load",
    "micro_attention_cpu",
    "takes",
]
