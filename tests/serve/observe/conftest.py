"""A server with HTTP, over the engine of all tests of the service."""

from collections.abc import Iterator

import pytest

from distkv_jax.llm import LLM
from serve.observe.audience import Audience
from serve.observe.record import Observer, Record
from tests.serve.conftest import check_empty
from tests.serve.running import Loop, Running, running, wait_until

LATE_S = 0.6
"""A deadline to miss; long enough for a request to come to the server of a busy machine."""


class Records(Observer):
    """Keeps what has ended."""

    def __init__(self) -> None:
        self.ended: list[Record] = []
        self.gaps: list[float] = []

    def on_gap(self, record: Record, seconds: float) -> None:
        del record
        self.gaps.append(seconds)

    def on_end(self, record: Record) -> None:
        self.ended.append(record)

    def wait(self, count: int) -> list[Record]:
        """Wait until so many have ended, and give them."""
        wait_until(lambda: len(self.ended) == count, f"{count} requests end")
        return self.ended


@pytest.fixture(scope="session")
def shared_web(loop: Loop, llm: LLM) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DISTKV_API_KEY", raising=False)
        with running(loop, llm, http_port=0) as service:
            yield service


@pytest.fixture
def web(shared_web: Running) -> Iterator[Running]:
    """A server with HTTP; nothing of a test may be left in it."""
    yield shared_web
    check_empty(shared_web)


@pytest.fixture
def records(web: Running) -> Iterator[Records]:
    """What ends on `web`, heard after all its other observers."""
    dispatcher, one = web.server.dispatcher, Records()
    before = dispatcher._audience
    dispatcher._audience = Audience([*before.observers, one])
    yield one
    dispatcher._audience = before
