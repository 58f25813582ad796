"""Which process of a service this is, and how long each may be silent."""

import dataclasses
from typing import Literal

from distkv_jax.errors import ConfigError

Launcher = Literal["slurm", "lws", "job"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorldSettings:
    """Settings of a service that runs on several hosts, one process on each.

    Attributes:
        launcher: Take coordinator, num_hosts and host_rank from what a launcher says: `slurm` of a
            task of srun, `lws` of a pod of Kubernetes' LeaderWorkerSet; `job` of one of its Indexed
            Jobs, which knows host_rank only. What is given counts more.
        coordinator: HOST:PORT at which rank 0 gathers the others. JAX's own service has the next
            port. Both are for a private network: what is said there is not encrypted.
        num_hosts: Processes of the service; rank 0 serves, the others follow it.
        host_rank: Which of them this is, from 0.
        join_token_file: File with a secret of at least 16 characters, the same on every host.
        join_timeout_s: Seconds that all ranks have to come.
        heartbeat_timeout_s: Seconds of silence after which a rank counts as lost.
        stuck_timeout_s: Seconds after which a step that moves on no rank ends the service.
    """

    launcher: Launcher | None = None
    coordinator: str | None = None
    num_hosts: int = 1
    host_rank: int | None = None
    join_token_file: str | None = None
    join_timeout_s: float = 300.0
    heartbeat_timeout_s: float = 5.0
    stuck_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_hosts <= 4096:
            raise ConfigError(f"num_hosts={self.num_hosts} must be within 1..4096")
        for name in ("join_timeout_s", "heartbeat_timeout_s", "stuck_timeout_s"):
            if not 0.1 <= getattr(self, name) <= 86400:
                raise ConfigError(f"{name}={getattr(self, name)} must be within 0.1..86400")
        needed = ("coordinator", "host_rank", "join_token_file")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.num_hosts == 1:
            if len(missing) < len(needed):
                raise ConfigError(f"{', '.join(needed)} are for num_hosts above 1")
            return
        if missing:
            raise ConfigError(f"num_hosts={self.num_hosts} needs {' and '.join(missing)}")
        if not 0 <= self.rank < self.num_hosts:
            raise ConfigError(f"host_rank={self.host_rank} must be within 0..{self.num_hosts - 1}")
        _ = self.port

    @property
    def is_shared(self) -> bool:
        """Whether there are several processes."""
        return self.num_hosts > 1

    @property
    def rank(self) -> int:
        """`host_rank`, where it must be there."""
        assert self.host_rank is not None
        return self.host_rank

    @property
    def host(self) -> str:
        """Of `coordinator`."""
        return (self.coordinator or "").rpartition(":")[0]

    @property
    def port(self) -> int:
        """Of `coordinator`.

        Raises:
            ConfigError: It has none.
        """
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65535:
            raise ConfigError(
                f"coordinator={self.coordinator!r} must be HOST:PORT, the port below 65535"
            )
        return int(port)

    @property
    def jax_coordinator(self) -> str:
        """Where JAX's own service is."""
        return f"{self.host}:{self.port + 1}"

    @property
    def leave_s(self) -> float:
        """Seconds that a rank has to let go of its devices when an epoch is over."""
        return 5 + 2 * self.heartbeat_timeout_s

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats."""
        return self.heartbeat_timeout_s / 5
