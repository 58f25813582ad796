"""Which MicroAttention implementation an engine runs."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax

from distkv_jax.errors import ConfigError
from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import IMPLEMENTATIONS, cpu

HOPPER = 9
"""Compute capability from which on NVIDIA GPUs have the instructions of "gpu"."""

logger = logging.getLogger(__name__)


class DeviceKind(Protocol):
    """What is asked of a `jax.Device`, here or only described."""

    @property
    def platform(self) -> str:
        """Platform, such as "tpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """What the vendor calls it."""
        ...


class AttentionCall(NamedTuple):
    """The shapes of one call of MicroAttention on one device."""

    q: jax.ShapeDtypeStruct
    pool: KVPool
    block_ids: jax.ShapeDtypeStruct
    block_starts: jax.ShapeDtypeStruct
    rows: jax.ShapeDtypeStruct


def choose_implementation(
    asked: str | None,
    *,
    device: DeviceKind,
    calls: Sequence[AttentionCall],
    cache_folder: Path,
) -> str:
    """Pick the platform's best implementation, or verify the one that was asked for.

    Args:
        asked: A name, or None for the best.
        device: One of the mesh; it may be described only, as for compiling ahead of time.
        calls: What the engine will ask of it.
        cache_folder: Where built kernels are kept.

    Returns:
        A name in `IMPLEMENTATIONS`. Where nothing was asked for and the platform's best cannot run
        these calls it is "xla", and one log line says why.

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
            f"expected {best!r} or 'xla'"
        )
    name = asked or best
    if name == "cpu" and not cpu.load(cache_folder):
        objection = "the native kernel could not be built"
    else:
        objection = next(filter(None, (objection_to(name, call) for call in calls)), None)
    if objection is None:
        return name
    if asked is not None:
        raise ConfigError(f"micro_attention={asked!r} cannot run here: {objection}")
    logger.warning("attention runs in XLA, not in %r: %s", name, objection)
    return "xla"


def best_of(device: DeviceKind) -> str:
    """Name the implementation that was made for a device."""
    if device.platform in ("cpu", "tpu"):
        return device.platform
    if device.platform in ("gpu", "cuda"):
        # JAX has it as text, "9.0", and other vendors' devices without it.
        capability = getattr(device, "compute_capability", "0")
        return "gpu" if float(capability) >= HOPPER else "triton"
    return "xla"


def objection_to(name: str, call: AttentionCall) -> str | None:
    """Trace a call, and return what the implementation says against it."""
    try:
        jax.eval_shape(functools.partial(IMPLEMENTATIONS[name], scale=1.0), *call)
    except (ImportError, TypeError, ValueError) as error:
        return str(error)
    return None
