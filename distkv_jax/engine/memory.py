"""How many blocks an instance's pool can have."""

from typing import NamedTuple

from distkv_jax.errors import ConfigError

CPU_POOL_BYTES = 2 * 2**30
"""Pools of the whole mesh where nothing is said: on CPU memory is shared with everything else."""


class MemoryUse(NamedTuple):
    """Bytes of one device.

    Attributes:
        limit: What the device has.
        fraction: Share of it that may be used.
        weights: Weights.
        state: Sampler state.
        temporaries: Of the largest program.
        block: One block, this device's heads only.
        num_staged: Blocks on their way to or from host memory.
    """

    limit: int
    fraction: float
    weights: int
    state: int
    temporaries: int
    block: int
    num_staged: int = 0


def blocks_that_fit(memory: MemoryUse) -> int:
    """Pool size of an instance: what is left of device memory after everything else.

    Raises:
        ConfigError: Not one block fits; says what takes how much.
    """
    allowed = int(memory.limit * memory.fraction)
    staged = memory.num_staged * memory.block
    left = allowed - memory.weights - memory.state - memory.temporaries - staged
    if left < memory.block:
        raise ConfigError(
            f"no KV block of {memory.block:,} bytes fits: device memory {memory.limit:,} bytes "
            f"× {memory.fraction} − weights {memory.weights:,} − sampler {memory.state:,} "
            f"− temporaries {memory.temporaries:,}{f' − staged {staged:,}' * (staged > 0)} "
            f"= {left:,}"
        )
    return left // memory.block
