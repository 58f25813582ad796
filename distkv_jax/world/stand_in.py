"""A process that enters a JAX world in place of one that died on its way there.

JAX's world begins when all processes have come, and ends those that wait for one in vain. So when
one is known to be dead a stand-in takes its place: the world begins, and is left again at once.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from distkv_jax.environment import of_simulation
from distkv_jax.world.processes import Presence

TIMEOUT_S = 30.0
"""It is not needed for longer, and ends by itself."""


def stand_in(coordinator: str, num_processes: int, process_id: int) -> "subprocess.Popen[bytes]":
    """Start one; it brings as many devices as this process simulates, and no others.

    Args:
        coordinator: As of `Presence`.
        num_processes: As of `Presence`.
        process_id: Of the one that died.
    """
    words = [sys.executable, "-m", __name__, coordinator, str(num_processes), str(process_id)]
    return subprocess.Popen(
        words,
        env=of_simulation(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main(words: Sequence[str]) -> None:
    """Enter, and end once all know each other."""
    coordinator, num_processes, process_id = words
    Presence(
        coordinator,
        num_processes=int(num_processes),
        process_id=int(process_id),
        platform="cpu",
        timeout_s=TIMEOUT_S,
    )
    # In order it would end only with all the others.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
