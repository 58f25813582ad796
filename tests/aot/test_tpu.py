"""The TPU's own compiler takes the kernel at the largest plan bucket, and whole sharded steps.

Nothing runs: `make aot-tpu` installs the compiler, which needs no TPU.
"""

import importlib.util
import os
import re

import jax.numpy as jnp
import pytest
from jax.stages import Compiled

from distkv_jax.environment import allow_absent_tpu
from distkv_jax.models.config import ModelConfig
from tests.aot.tpu_programs import (
    INSTANCES,
    STEP_BLOCK_SIZE,
    STEP_BLOCKS,
    TOPOLOGIES,
    KernelCase,
    compile_decode,
    compile_kernel,
)
from tests.hlo import collectives

if importlib.util.find_spec("libtpu") is None:
    raise ImportError("the TPU compiler is not installed: make aot-tpu")

CASES = {
    "7B": KernelCase(32, 32, jnp.bfloat16, block_size=16, num_blocks=32_768),
    "7B int8": KernelCase(32, 32, jnp.int8, block_size=128, num_blocks=4_096),
    "70B": KernelCase(8, 1, jnp.bfloat16, block_size=64, num_blocks=32_768),
    "70B int8": KernelCase(8, 1, jnp.int8, block_size=128, num_blocks=32_768),
    "70B fp8": KernelCase(8, 1, jnp.float8_e4m3fn, block_size=128, num_blocks=32_768),
}
LLAMA2_7B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=3,  # the first two are of one shape, and traced once
    q_heads=32,
    kv_heads=32,
    head_dim=128,
    max_model_len=4096,
    dtype="bfloat16",
)


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    """Let the compiler start without a TPU, and beside other processes that use it."""
    allow_absent_tpu()
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def num_kernels(compiled: Compiled) -> int:
    return len(re.findall(r'custom_call_target="tpu_custom_call"', compiled.as_text() or ""))


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_decode", [True, False], ids=["decode", "prefill"])
def test_the_kernel_compiles_at_the_largest_bucket(chip: str, name: str, is_decode: bool) -> None:
    case = CASES[name]
    bucket = case.largest_bucket
    tile, tiles = (1, bucket.decode_rows) if is_decode else (bucket.tile, bucket.prefill_tiles)

    compiled = compile_kernel(chip, case, tile=tile, tiles=INSTANCES * tiles)

    assert num_kernels(compiled) == 1
    pool_bytes = case.num_blocks * 2 * case.kv_heads * case.block_size * 128
    memory = compiled.memory_analysis()
    assert memory is not None
    # The pool is read where it is: in another layout than the kernel's it would be copied whole.
    assert memory.temp_size_in_bytes < pool_bytes // 4


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_scalars_fit_up_to_the_limit_that_is_checked(chip: str) -> None:
    rows = 512
    fitting = (2**20 - 2**13) // 4 - 5 * rows
    case = KernelCase(8, 1, jnp.bfloat16, block_size=16, num_blocks=fitting // 4)

    compile_kernel(chip, case, tile=1, tiles=rows)

    with pytest.raises(ValueError, match="list entries and 513 rows need 1040[0-9]{3} bytes"):
        compile_kernel(chip, case, tile=1, tiles=rows + 1)


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_a_step_compiles_over_instances_and_tensor(chip: str) -> None:
    tensor = 2

    compiled = compile_decode(chip, LLAMA2_7B, instance=2, tensor=tensor)

    # Per layer: own tiles and foreign ones.
    assert num_kernels(compiled) == 2 * LLAMA2_7B.num_layers
    kinds = [one.kind for one in collectives(compiled.as_text()) if one.crosses(tensor)]
    assert kinds.count("all-to-all") == LLAMA2_7B.num_layers
    memory = compiled.memory_analysis()
    assert memory is not None
    heads = LLAMA2_7B.kv_heads // tensor
    pool = STEP_BLOCKS * 2 * heads * STEP_BLOCK_SIZE * LLAMA2_7B.head_dim * 2
    assert memory.alias_size_in_bytes >= LLAMA2_7B.num_layers * pool
    assert memory.temp_size_in_bytes < pool
