"""Which MicroAttention implementation an engine runs."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int

from distkv_jax.errors import ConfigError
from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import IMPLEMENTATIONS, cpu, micro_attention

NOT_BUILT = "the native kernel could not be built, or the processor is too old for it"

logger = logging.getLogger(__name__)


class AttentionCall(NamedTuple):
    """The arrays of one call of `micro_attention`, or their shapes alone.

    Attributes:
        q: Query tiles.
        pool: Keys and values of one layer on one device.
        block_ids: Block lists.
        block_starts: Position of each listed block's first token.
        rows: Work.
    """

    q: Float[Array, "tiles tile q_heads head_dim"] | jax.ShapeDtypeStruct
    pool: KVPool
    block_ids: Int[Array, " entries"] | jax.ShapeDtypeStruct
    block_starts: Int[Array, " entries"] | jax.ShapeDtypeStruct
    rows: Int[Array, "rows 5"] | jax.ShapeDtypeStruct


@runtime_checkable
class Device(Protocol):
    """What is asked of a device; a GPU also has its `compute_capability`."""

    @property
    def platform(self) -> str:
        """Such as "cpu", "gpu" or "tpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """The vendor's name of it."""
        ...


def choose_implementation(
    asked: str | None, *, device: Device, calls: Sequence[AttentionCall], cache_folder: Path
) -> str:
    """Pick the device's best implementation, or verify the one that was asked for.

    Args:
        asked: A name, or None for the best; where that cannot take the calls XLA runs, and one log
            line says why.
        device: Where it is to run; all devices of a mesh are alike.
        calls: Shapes of the calls that will be made.
        cache_folder: Where built kernels are kept.

    Raises:
        ConfigError: The one that was asked for is unknown, or cannot run here.
    """
    if asked is not None and asked not in IMPLEMENTATIONS:
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ConfigError(f"micro_attention={asked!r} must be one of {known}")
    best = best_of(device)
    if asked not in (None, "xla", best):
        raise ConfigError(
            f"micro_attention={asked!r} cannot run on a device of kind {device.device_kind!r}, "
            f"expected {' or '.join(map(repr, sorted({best, 'xla'})))}"
        )
    name = asked or best
    obstacle = obstacle_to(name, calls, cache_folder)
    if obstacle is None:
        return name
    if asked is not None:
        raise ConfigError(f"micro_attention={asked!r} cannot run here: {obstacle}")
    if obstacle != NOT_BUILT:  # of which `cpu.load` has told
        logger.warning("attention runs in XLA, not in %r: %s", best, obstacle)
    return "xla"


def best_of(device: Device) -> str:
    """Name the best implementation of a kind of device, whatever the calls."""
    if device.platform in ("gpu", "cuda"):
        # Mosaic's matrix instructions are Hopper's.
        return "gpu" if getattr(device, "compute_capability", "").startswith("9.") else "triton"
    return device.platform if device.platform in ("cpu", "tpu") else "xla"


def obstacle_to(name: str, calls: Sequence[AttentionCall], cache_folder: Path) -> str | None:
    """Say what keeps an implementation from running the calls, in its own words; None: nothing."""
    if name == "xla":
        return None
    if name == "cpu" and not cpu.load(cache_folder):
        return NOT_BUILT
    for call in calls:
        try:
            jax.eval_shape(
                functools.partial(micro_attention, scale=1.0, implementation=name),
                *call,
            )
        except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return str(error).splitlines()[0]
    return None
