"""What fits on a mesh, counted from a model's config alone."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.host_memory import STAGED_BLOCKS
from distkv_jax.engine.memory import CPU_POOL_BYTES, MemoryUse, blocks_that_fit
from distkv_jax.engine.pool_spec import pool_spec
from distkv_jax.engine.sampler_state import state_bytes
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.sharding import weight_bytes


class Fit(NamedTuple):
    """What fits on a mesh.

    Attributes:
        weight_bytes: Weights on each device.
        token_bytes: KV of one token on each device that holds a part of it.
        num_blocks: Blocks of one instance's pool.
        block_size: Tokens of a block.
        num_instances: Pools of the mesh.
        max_model_len: Positions a sequence may have.
        window: Latest positions a query sees, whose KV alone is kept; None for all.
    """

    weight_bytes: int
    token_bytes: int
    num_blocks: int
    block_size: int
    num_instances: int
    max_model_len: int
    window: int | None

    @property
    def instance_tokens(self) -> int:
        """KV tokens that one instance holds."""
        return self.num_blocks * self.block_size

    @property
    def mesh_tokens(self) -> int:
        """KV tokens that all instances hold together."""
        return self.instance_tokens * self.num_instances

    def longest(self, tokens: int) -> int:
        """Tell the longest context of a request that may hold `tokens`."""
        if (
            self.window is not None
            and self.blocks_of(self.max_model_len) * self.block_size <= tokens
        ):
            return self.max_model_len
        return min(tokens, self.max_model_len)

    def blocks_of(self, context: int) -> int:
        """Count the blocks that a request of `context` tokens holds."""
        if self.window is not None and self.window < context:
            # A window begins and ends inside a block.
            return -(-self.window // self.block_size) + 1
        return -(-context // self.block_size)

    def num_apart(self, context: int) -> int:
        """Count the requests that fit at once if each must be on one instance."""
        return self.num_instances * (self.num_blocks // self.blocks_of(context))

    def num_pooled(self, context: int) -> int:
        """Count the requests that fit at once if blocks may be anywhere."""
        return self.num_instances * self.num_blocks // self.blocks_of(context)


def fit(
    model: ModelConfig,
    mesh: MeshConfig,
    engine: EngineConfig,
    *,
    dtype: str = "auto",
    device_memory_gib: float | None = None,
    temporaries: int = 0,
) -> Fit:
    """Count what fits, as an engine would size its pools.

    Args:
        model: The checkpoint's config.
        mesh: Where to.
        engine: Sizes asked for.
        dtype: Of weights; `auto` as `LLM` has it.
        device_memory_gib: Memory of one device; None takes the mesh file's.
        temporaries: Bytes of a device that the largest program needs, where they are known.

    Raises:
        ConfigError: Nothing fits, heads do not divide, or the memory is not known.
    """
    split = model.for_tensor(mesh.tensor)
    if dtype == "auto":
        dtype = "float32" if mesh.platform == "cpu" else model.dtype
    weights = weight_bytes(model, jnp.dtype(dtype), mesh.tensor)
    block = pool_spec(
        split, engine, weights=np.dtype(jnp.dtype(dtype)), platform=mesh.platform, num_blocks=1
    ).block_bytes
    memory_gib = mesh.memory_gib if device_memory_gib is None else device_memory_gib
    if engine.num_blocks is not None:
        num_blocks = engine.num_blocks
    elif memory_gib is not None:
        num_blocks = blocks_that_fit(
            MemoryUse(
                limit=int(memory_gib * 2**30),
                fraction=engine.device_memory_fraction,
                weights=weights,
                state=state_bytes(engine.max_num_seqs, split.vocab_size),
                temporaries=temporaries,
                block=block // mesh.tensor,
                num_staged=STAGED_BLOCKS if engine.host_blocks else 0,
            )
        )
    elif mesh.platform == "cpu":
        num_blocks = max(1, CPU_POOL_BYTES // mesh.instance // block)
    else:
        raise ConfigError(f"mesh {mesh.name} has no memory_gib: give --device-memory-gib")
    return Fit(
        weight_bytes=weights,
        token_bytes=block // engine.block_size // mesh.tensor,
        num_blocks=num_blocks,
        block_size=engine.block_size,
        num_instances=mesh.instance,
        max_model_len=min(engine.max_model_len or split.max_model_len, split.max_model_len),
        window=split.sliding_window,
    )
