"""Which MicroAttention implementation an engine runs."""

from pathlib import Path

import numpy as np

from distkv_jax.errors import ConfigError
from pallas_kernels.micro_attention import IMPLEMENTATIONS, cpu


def choose_implementation(
    asked: str | None, *, platform: str, dtype: np.dtype, cache_folder: Path
) -> str:
    """Pick the platform's best implementation, or verify the one that was asked for.

    Args:
        asked: A name, or None for the best: on CPU the native one where it can be built.
        platform: Platform of the mesh: "cpu", "gpu" or "tpu".
        dtype: Of queries, keys and values.
        cache_folder: Where built kernels are kept.

    Raises:
        ConfigError: The one that was asked for is unknown, or cannot run here.
    """
    if asked is not None and asked not in IMPLEMENTATIONS:
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ConfigError(f"micro_attention={asked!r} must be one of {known}")
    if asked == "xla" or (asked is None and platform != "cpu"):
        return "xla"
    is_possible = platform == "cpu" and dtype in cpu.DTYPES and cpu.load(cache_folder)
    if asked == "cpu" and not is_possible:
        raise ConfigError(
            f"micro_attention='cpu' cannot run on platform {platform!r} with dtype {dtype}, "
            "it needs a CPU, a C++ compiler, and float32 or bfloat16"
        )
    return "cpu" if is_possible else "xla"
