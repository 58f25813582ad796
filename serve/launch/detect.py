"""What a launcher says of a process: which of how many it is, and where the first one is."""

import re
from typing import Any

from distkv_jax.environment import variables
from distkv_jax.errors import ConfigError
from serve.world.settings import Launcher

PORT = 50061
"""Of the coordinator, where a launcher names its host alone; JAX's own service has the next."""

# Those of the rank, of the number of processes and of the host of rank 0; a Job says the first.
VARIABLES: dict[Launcher, tuple[str, ...]] = {
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"),
    "lws": ("LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS"),
    "job": ("JOB_COMPLETION_INDEX",),
}
NUMBERS = ("host_rank", "num_hosts")


def detect(launcher: Launcher) -> dict[str, Any]:
    """Read the fields of `WorldSettings` that a launcher knows.

    Raises:
        ConfigError: This process was not started by it.
    """
    names = VARIABLES[launcher]
    found = variables(*names)
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(f"launcher={launcher!r} needs {', '.join(missing)} in the environment")
    place: dict[str, Any] = {}
    for field, name in zip(NUMBERS, names, strict=False):
        if not found[name].isdigit():
            raise ConfigError(f"{name}={found[name]} must be a number")
        place[field] = int(found[name])
    for name in names[len(NUMBERS) :]:
        place["coordinator"] = f"{first_host(found[name])}:{PORT}"
    return place


def first_host(hosts: str) -> str:
    """Name the first host of a list in Slurm's form: `a1,b`, `a[3,5-7],b`, `a[03-12]`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", hosts)
    if match is None:
        raise ConfigError(f"{hosts!r} is no list of hosts")
    return match[1] + (match[2] or "")
