"""How messages travel: a protocol, and the way inside one process."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from distkv_jax.cache.messages import Heartbeat, Reply, Request
from distkv_jax.cache.protocol import answer
from distkv_jax.cache.rmanager import RManager


@runtime_checkable
class Transport(Protocol):
    """Carries messages, and may lose, double or delay any of them."""

    def ask(self, destination: int, request: Request) -> Reply | None:
        """Carry a request to an instance and its reply back; None where no reply came in time.

        Without a reply the request may have arrived, or arrive later.
        """
        ...

    def tell(self, heartbeat: Heartbeat) -> None:
        """Carry a heartbeat to gManager, if all goes well."""
        ...


class InProcess:
    """Calls the receiver: nothing is lost, doubled or late."""

    def __init__(self, rmanagers: Sequence[RManager], receive: Callable[[Heartbeat], None]) -> None:
        """Connect instances and gManager.

        Args:
            rmanagers: One for each instance.
            receive: How gManager hears a heartbeat.
        """
        self._rmanagers = rmanagers
        self._receive = receive

    def ask(self, destination: int, request: Request) -> Reply:
        """Let the instance answer."""
        return answer(self._rmanagers[destination], request)

    def tell(self, heartbeat: Heartbeat) -> None:
        """Let gManager hear it."""
        self._receive(heartbeat)
