"""The parts of an engine that belong to its devices, and who makes them again on other ones."""

import dataclasses
from typing import Protocol, runtime_checkable

from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.cache.performance import StepModel
from distkv_jax.engine.encode import Encoder
from distkv_jax.engine.rebalance import Rebalancer
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.scheduler import Scheduler


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """All of an engine that is of no use on other devices.

    Attributes:
        runner: Owns the arrays.
        coordinator: Every block, free at first.
        scheduler: With an empty queue.
        encoder: Of its plans.
        rebalancer: Of its blocks.
        step_model: How long steps take; None where that is not known.
    """

    runner: Runner
    coordinator: Coordinator
    scheduler: Scheduler
    encoder: Encoder
    rebalancer: Rebalancer
    step_model: StepModel | None


@runtime_checkable
class Renewal(Protocol):
    """Makes the parts anew on the devices that are left, or on more."""

    @property
    def is_due(self) -> bool:
        """Whether the devices have changed, or are about to."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether the devices in use are of no use any more; else new ones may wait a little."""
        ...

    @property
    def patience_s(self) -> float:
        """Seconds for which a request may wait for devices that are lost to come back."""
        ...

    def renew(self) -> Parts:
        """Make them; nothing may refer to what the old ones had on their devices.

        Raises:
            WorldLost: There are no devices any more.
        """
        ...
