"""A transport that loses, doubles and delays messages, as it is told."""

from collections.abc import Callable
from typing import Literal, TypeAlias

from distkv_jax.cache.messages import Heartbeat, Reply, Request
from distkv_jax.cache.transport import Transport

Fate: TypeAlias = Literal["arrives", "is lost", "arrives unanswered", "arrives twice", "is late"]

FATES: tuple[Fate, ...] = (
    "arrives",
    "is lost",
    "arrives unanswered",
    "arrives twice",
    "is late",
)


class Faulty:
    """Asks `fate` what becomes of each request; late ones wait in `late`.

    Heartbeats arrive: their own losses are a matter of `test_histories.py`.
    """

    def __init__(self, inner: Transport, fate: Callable[[], Fate]) -> None:
        self.inner = inner
        self.fate = fate
        self.sent: list[Request] = []
        self.late: list[tuple[int, Request]] = []

    def ask(self, destination: int, request: Request) -> Reply | None:
        self.sent.append(request)
        match self.fate():
            case "arrives":
                return self.inner.ask(destination, request)
            case "is lost":
                return None
            case "arrives unanswered":
                self.inner.ask(destination, request)
                return None
            case "arrives twice":
                first = self.inner.ask(destination, request)
                assert self.inner.ask(destination, request) == first
                return first
            case "is late":
                self.late.append((destination, request))
                return None

    def deliver(self, index: int) -> None:
        """Let a late request arrive; nobody waits for its answer any more."""
        self.inner.ask(*self.late.pop(index))

    def tell(self, heartbeat: Heartbeat) -> None:
        self.inner.tell(heartbeat)
