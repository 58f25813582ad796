"""What the engine looks like when it hears that nobody wants a request any more."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple

import pytest

from distkv_jax.engine.engine import Engine
from distkv_jax.llm import LLM


class Moment(NamedTuple):
    """An engine around a cancel."""

    num_steps: int
    num_held: int


def moment_of(engine: Engine) -> Moment:
    held = sum(one.held for one in engine.coordinator.usage())
    return Moment(engine.stats.num_steps, held)


class Cancels:
    """What the engine looked like when it heard of each cancel, and just after."""

    def __init__(self) -> None:
        self.before: list[Future[Moment]] = []
        self.after: list[Future[Moment]] = []

    def check(self) -> None:
        assert self.before
        first, last = self.before[0].result(), self.after[-1].result()
        assert first.num_held > 0
        assert last.num_held == 0
        assert last.num_steps - first.num_steps <= 2


@contextlib.contextmanager
def watched_cancels(llm: LLM) -> Iterator[Cancels]:
    """Look at the engine at each cancel."""
    seen, cancel = Cancels(), llm.thread.cancel

    def watched(request_id: str) -> None:
        seen.before.append(llm.thread.call_soon(moment_of))
        cancel(request_id)
        seen.after.append(llm.thread.call_soon(moment_of))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.thread, "cancel", watched)
        yield seen
