"""Making the processes of several hosts one JAX world, and leaving it."""

import math

import jax

from distkv_jax.errors import ConfigError


def enter(
    coordinator: str, *, num_hosts: int, host_rank: int, platform: str, timeout_s: float
) -> None:
    """Join the JAX world; call it before anything else uses JAX.

    Args:
        coordinator: Address of JAX's own service, which rank 0 starts.
        num_hosts: Processes.
        host_rank: Which of them this is.
        platform: Of the mesh; on "cpu" gloo moves the data.
        timeout_s: Seconds that the others have to come.

    Raises:
        ConfigError: They did not, or JAX has started already.
    """
    if platform == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_hosts,
            host_rank,
            initialization_timeout=math.ceil(timeout_s),
        )
    except RuntimeError as error:
        raise ConfigError(
            f"rank {host_rank} could not join JAX's world at {coordinator}: {error}"
        ) from error


def leave() -> None:
    """Leave the JAX world; waits until all do."""
    jax.distributed.shutdown()
