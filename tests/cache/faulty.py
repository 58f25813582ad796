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


def scripted(*fates: Fate) -> Callable[[], Fate]:
    """One fate after the other; then all is well."""
    turns = list(fates)
    return lambda: turns.pop(0) if turns else "arrives"


class Faulty:
    """Asks `fate` what becomes of each message; late ones wait in `late`."""

    def __init__(self, inner: Transport, fate: Callable[[], Fate]) -> None:
        self.inner = inner
        self.fate = fate
        self.sent: list[Request] = []
        self.late: list[Callable[[], object]] = []

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
                self.late.append(lambda: self.inner.ask(destination, request))
                return None

    def tell(self, heartbeat: Heartbeat) -> None:
        match self.fate():
            case "arrives" | "arrives unanswered":
                self.inner.tell(heartbeat)
            case "arrives twice":
                self.inner.tell(heartbeat)
                self.inner.tell(heartbeat)
            case "is late":
                self.late.append(lambda: self.inner.tell(heartbeat))
            case "is lost":
                pass

    def deliver(self, index: int) -> None:
        """Let a late message arrive; nobody waits for an answer any more."""
        self.late.pop(index)()
