"""Programs compiled for TPUs that are not here: the kernel alone, and a whole sharded step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jax.stages import Compiled

from distkv_jax.engine.ahead import buckets, compile_step
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.shapes import PlanShape, shape_table
from distkv_jax.mesh import AXES, sharding
from distkv_jax.models.config import ModelConfig
from pallas_kernels.kv_pool import empty_pool
from pallas_kernels.micro_attention import micro_attention

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
INSTANCES = 32
STEP_BLOCKS = 256
"""Blocks of an instance in a step: one layer's pool is larger than everything temporary."""
STEP_BLOCK_SIZE = 64


class KernelCase(NamedTuple):
    """One device's share of a model, and a pool that fills about half of its memory.

    Attributes:
        q_heads: Query heads of the device.
        kv_heads: KV heads of the device.
        dtype: Of the pool.
        block_size: Tokens of a block.
        num_blocks: Blocks of the pool; the lists have twice as many entries.
    """

    q_heads: int
    kv_heads: int
    dtype: type
    block_size: int
    num_blocks: int

    @property
    def largest_bucket(self) -> PlanShape:
        """The largest plan bucket of 32 instances with 256 sequences each."""
        config = EngineConfig(max_num_seqs=256, block_size=self.block_size)
        return shape_table(config, INSTANCES, self.num_blocks).shapes[-1]


def chip_mesh(chip: str, instance: int, tensor: int) -> Mesh:
    """Four devices of a chip, as a mesh."""
    described = topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu")
    return jax.make_mesh(
        (instance, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=described.devices[: instance * tensor],
    )


def compile_kernel(chip: str, case: KernelCase, *, tile: int, tiles: int) -> Compiled:
    """Compile one call of the kernel for one device.

    Args:
        chip: A key of `TOPOLOGIES`.
        case: Heads and pool.
        tile: Tokens of a tile.
        tiles: Tiles, and rows.
    """
    placed = sharding(chip_mesh(chip, 1, 1))
    shape = (case.num_blocks, 2, case.kv_heads, case.block_size, 128)
    entries = jax.ShapeDtypeStruct((2 * case.num_blocks,), np.int32)
    call = jax.jit(
        functools.partial(micro_attention, scale=1.0, implementation="tpu"),
        in_shardings=placed,
        out_shardings=placed,
    )
    return call.lower(
        jax.ShapeDtypeStruct((tiles, tile, case.q_heads, 128), jnp.bfloat16),
        jax.eval_shape(lambda: empty_pool(shape, np.dtype(case.dtype))),
        entries,
        entries,
        jax.ShapeDtypeStruct((tiles, 5), np.int32),
    ).compile()


def compile_decode(chip: str, config: ModelConfig, *, instance: int, tensor: int) -> Compiled:
    """Compile the largest decode step, which spans instances, from shapes alone."""
    mesh = chip_mesh(chip, instance, tensor)
    engine = EngineConfig(block_size=STEP_BLOCK_SIZE)
    return compile_step(
        config.for_tensor(tensor),
        engine,
        mesh,
        buckets(engine, mesh, STEP_BLOCKS)[0],
        dtype=jnp.bfloat16,
        num_blocks=STEP_BLOCKS,
    )
