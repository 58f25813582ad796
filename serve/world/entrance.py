"""The leader's way into the JAX world of an epoch, past those that die on theirs."""

import subprocess
import threading

from distkv_jax.world.processes import Presence
from distkv_jax.world.stand_in import stand_in
from serve.world.epoch import Epoch
from serve.world.members import Member


class Entrance:
    """Enters one JAX world after another. While it does, lost members have stand-ins."""

    def __init__(self, platform: str, timeout_s: float) -> None:
        """Be in no world.

        Args:
            platform: Of the mesh.
            timeout_s: Seconds that the members have to come, each of which is watched.
        """
        self._platform = platform
        self._timeout_s = timeout_s
        self._presence: Presence | None = None
        self._lock = threading.Lock()
        # Of the epoch that is being entered, by rank; None outside that time.
        self._stand_ins: dict[int, subprocess.Popen[bytes]] | None = None

    def enter(self, epoch: Epoch) -> None:
        """Wait until all members are in, or somebody in their place.

        Raises:
            ConfigError: JAX has started already.
            WorldLost: A member was lost on the way.
        """
        with self._lock:
            self._stand_ins = {}
        for member in epoch.members.values():
            self.without(epoch, member)
        try:
            self._presence = Presence(
                epoch.jax_coordinator,
                num_processes=epoch.num_processes,
                process_id=0,
                platform=self._platform,
                timeout_s=self._timeout_s,
            )
        finally:
            with self._lock:
                started, self._stand_ins = self._stand_ins, None
            for process in started.values():
                process.kill()
                process.wait()

    def without(self, epoch: Epoch, member: Member) -> None:
        """Let the others enter although a lost member will not."""
        with self._lock:
            is_wanted = self._stand_ins is not None and member.end is not None
            if self._stand_ins is not None and is_wanted and member.rank not in self._stand_ins:
                self._stand_ins[member.rank] = stand_in(
                    epoch.jax_coordinator, epoch.num_processes, member.process_id
                )

    def drop_devices(self) -> None:
        """Let go of the devices of the world, if there is one.

        Raises:
            WorldLost: Something refers to them.
        """
        if self._presence is not None:
            self._presence.drop_devices()

    def leave(self) -> None:
        """Leave the world, when the others have."""
        if self._presence is not None:
            self._presence.leave()
            self._presence = None
