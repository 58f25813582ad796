"""Making the processes of several hosts one JAX world, and leaving it to enter another one."""

import gc
import math
import time
import weakref

import jax
from jax.extend.backend import clear_backends

from distkv_jax.errors import ConfigError, WorldLost
from distkv_jax.mesh import sharding

RELEASE_S = 5.0
"""For other threads to let go of what they may just be looking at."""


class Presence:
    """This process's part in one JAX world, from its making until `leave`.

    A process may enter one world after another: it lets go of its devices, leaves, and enters
    again under another address. Tried with jax 0.10.2 on CPU; jax itself does not promise it.
    """

    def __init__(
        self,
        coordinator: str,
        *,
        num_processes: int,
        process_id: int,
        platform: str,
        timeout_s: float,
    ) -> None:
        """Enter, and make the devices; nothing else may have used JAX since the last world.

        Args:
            coordinator: Address of JAX's own service, which process 0 starts.
            num_processes: Of this world.
            process_id: Which of them this is.
            platform: Of the mesh; on "cpu" gloo moves the data.
            timeout_s: Seconds that the others have to come. JAX ends the process when they do
                not: whoever knows that one will not has `stand_in` come in its place.

        Raises:
            ConfigError: JAX has started already, or the address cannot be had.
            WorldLost: Another process was lost before its devices were known.
        """
        if platform == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # Else whoever leaves waits for all, those that are dead too.
        jax.config.update("jax_enable_recoverability", True)
        # It would take SIGTERM for itself every time, which is for who serves to hear.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=math.ceil(timeout_s),
            )
        except RuntimeError as error:
            raise ConfigError(
                f"process {process_id} could not enter JAX's world at {coordinator}: {error}"
            ) from error
        try:
            # All know each other's devices when it returns.
            self._client = weakref.ref(jax.local_devices()[0].client)
        except RuntimeError as error:
            # So that another world can be entered.
            clear_backends()
            jax.distributed.shutdown()
            raise WorldLost(f"the processes could not tell their devices: {error}") from error

    def drop_devices(self) -> None:
        """Let go of all devices, and of the connections to those of other processes.

        Whoever waits for this process inside a collective fails then. That is so only when nothing
        refers to an array, a program, a mesh or a sharding any more: one is enough to keep the
        connections, and the others waiting, for ever.

        Raises:
            WorldLost: Something does; this process must end.
        """
        sharding.cache_clear()
        jax.clear_caches()
        clear_backends()
        deadline = time.monotonic() + RELEASE_S
        gc.collect()
        while self._client() is not None:
            if time.monotonic() > deadline:
                raise WorldLost("something still refers to the devices of an epoch that is over")
            time.sleep(0.01)
            gc.collect()

    def leave(self) -> None:
        """Leave; process 0 does so when all others have, its service ends with it."""
        jax.distributed.shutdown()
