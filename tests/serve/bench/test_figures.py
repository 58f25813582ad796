"""Figures are those that a person with a pencil gets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve.bench.backend import About, Failed, Piece, Usage
from serve.bench.exchange import Outcome, exchange
from serve.bench.figures import work_out
from serve.bench.workload import Item

# 5 tokens in 3 pieces; 1 token; a failure.
OUTCOMES = [
    Outcome(0.0, 10, 5, True, 0.2, (0.1, 0.3), 0.6, queue_s=0.4),
    Outcome(0.5, 20, 1, False, 1.0, (), 1.0),
    Outcome(0.6, 99, 7, True, 0.1, (), 0.1, error="HTTP 429: queue full"),
]


def test_figures_are_those_by_hand() -> None:
    figures = work_out(OUTCOMES, 2.0, percentiles=(50, 90), goodput_ms={"ttft": 500, "tpot": 100})

    assert (figures.completed, figures.failed) == (2, 1)
    assert figures.errors == {"HTTP 429: queue full": 1}
    assert (figures.total_input, figures.total_output) == (30, 6)
    assert figures.request_throughput == 1.0
    assert figures.output_throughput == 3.0
    assert figures.total_token_throughput == 18.0
    assert figures.num_without_usage == 1
    # Only the first: the second took 1000 ms to its first token.
    assert figures.request_goodput == 0.5
    # Both touch second 0, only the second one ends in second 1, with its one token.
    assert figures.max_concurrent_requests == 2
    assert figures.max_output_tokens_per_s == pytest.approx(5.0)

    ttft, tpot, itl = (figures.spreads[name] for name in ("ttft", "tpot", "itl"))
    assert (ttft.mean, ttft.median, ttft.std) == pytest.approx((600, 600, 400))
    assert ttft.percentiles == pytest.approx({50: 600, 90: 920})
    # (600 - 200) / 4; an answer of one token has no time per token.
    assert (tpot.mean, tpot.std) == pytest.approx((100, 0))
    assert (itl.mean, itl.median) == pytest.approx((200, 200))
    assert figures.spreads["e2el"].mean == pytest.approx(800)
    assert figures.spreads["client_queue_time"].mean == pytest.approx(200)
    assert figures.spreads["e2el_including_client_queue"].mean == pytest.approx(1000)


@pytest.mark.parametrize(
    ("limits", "num_good"),
    [({"e2el": 600}, 1), ({"e2el": 1000}, 2), ({"tpot": 99}, 1), ({"ttft": 0}, 0)],
)
def test_a_request_is_good_if_it_keeps_every_limit(limits: dict[str, float], num_good: int) -> None:
    assert work_out(OUTCOMES, 1.0, goodput_ms=limits).request_goodput == num_good


def test_nothing_answered_is_zeros() -> None:
    figures = work_out(OUTCOMES[2:], 1.0)

    assert (figures.completed, figures.failed, figures.total_input) == (0, 1, 0)
    assert figures.request_goodput is None
    assert figures.spreads["ttft"].percentiles == {99.0: 0.0}
    assert figures.max_concurrent_requests == 0


class Scripted:
    """A backend that gives what it is told, and a clock that goes on by one with each look."""

    def __init__(self, *script: Piece | Failed) -> None:
        self.script = script
        self.now = 99.0

    def clock(self) -> float:
        self.now += 1
        return self.now

    async def about(self) -> About:
        return About("scripted")

    def prepare(self, item: Item, model: str) -> None:
        return None

    async def stream(self, request: Any) -> AsyncIterator[Piece]:
        for one in self.script:
            if isinstance(one, Failed):
                raise one
            yield one

    async def close(self) -> None:
        pass

    def ask(self) -> Outcome:
        return asyncio.run(exchange(self, None, 11, clock=self.clock))


def test_times_are_of_pieces_and_tokens_of_usage() -> None:
    usage = Piece(is_output=False, usage=Usage(12, 9))
    outcome = Scripted(Piece("a"), Piece(""), Piece("b"), usage).ask()

    # Started at 100, pieces at 101 to 103: the usage takes no time.
    assert outcome == Outcome(100, 12, 9, True, 1, (1, 1), 3, text="ab")


def test_without_usage_pieces_are_counted() -> None:
    outcome = Scripted(Piece("a"), Piece("b")).ask()

    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.has_usage) == (11, 2, False)


def test_a_failure_and_an_empty_answer_are_errors() -> None:
    assert Scripted(Piece("a"), Failed("HTTP 500: oh")).ask().error == "HTTP 500: oh"
    assert Scripted().ask().error == "the answer has no tokens"
