"""A request that is being tokenised is live: it can be ended, and it holds nobody else up."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import distkv_jax.models
from distkv_jax.engine.prompt import parse_prompt
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DeadlineExceeded, PromptTooLong, RequestCancelled, Unavailable
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer
from serve.ask import Ask
from serve.keys import ANYBODY
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    in_background,
    paused,
    running,
    wait_until,
)

LONG = [5] * 3000
"""So long that a thread prepares it."""
TINY = Path(distkv_jax.models.__path__[0]) / "tiny"
SHORT = {"max_tokens": 2, "ignore_eos": True}


@pytest.fixture
def slow(service: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Preparing takes until the test is over; gives an event that says it has begun."""
    begun, over = threading.Event(), threading.Event()
    make = service.llm.make_request

    def wait(prompt: Any, *arguments: Any, **named: Any) -> Any:
        if len(prompt) == len(LONG):
            begun.set()
            assert over.wait(TIMEOUT_S)
        return make(prompt, *arguments, **named)

    monkeypatch.setattr(service.llm, "make_request", wait)
    yield begun
    over.set()


def test_it_can_be_aborted(service: Running, slow: threading.Event) -> None:
    answer = in_background(service.client.generate, LONG, SHORT, request_id="x")
    assert slow.wait(TIMEOUT_S)
    service.client.abort("x")

    with pytest.raises(RequestCancelled, match="the request was aborted"):
        answer.result(5)
    wait_until(lambda: not service.server.dispatcher.quota.num_requests, "its slot is free")
    assert service.client.generate([5], SHORT, request_id="x").finished


def test_its_deadline_passes(service: Running, slow: threading.Event) -> None:
    """By the server's clock: over a socket the client's own would end the call."""

    async def ask() -> None:
        late = Ask(LONG, SamplingParams(), deadline=time.monotonic() + 0.1)
        async with service.server.dispatcher.open(ANYBODY, late, is_whole=True):
            raise AssertionError("it was prepared")

    with pytest.raises(DeadlineExceeded, match="the deadline passed before the request ended"):
        service.loop.run(ask())
    assert slow.is_set()


def test_a_stop_ends_it(loop: Loop, shared: Running, slow: threading.Event) -> None:
    with running(loop, shared.llm) as service:
        answer = in_background(service.client.generate, LONG, SHORT)
        assert slow.wait(TIMEOUT_S)
        service.on_loop(service.server.stop_now)
        with pytest.raises(Unavailable, match="the server was stopped"):
            answer.result(5)
        assert not service.wait()


def test_an_engine_that_does_not_take_it_in_cannot_hold_it(service: Running) -> None:
    with paused(service.llm):
        answer = in_background(service.client.generate, [5], SHORT, request_id="x")
        wait_until(lambda: service.server.dispatcher.quota.num_requests, "it came")
        service.client.abort("x")
        with pytest.raises(RequestCancelled):
            answer.result(5)


async def longest_pause(work: Any) -> float:
    """Milliseconds that the loop did not run for at most, while a thread works."""
    longest, last = 0.0, time.perf_counter()
    running_work = asyncio.ensure_future(asyncio.to_thread(work))
    while not running_work.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await running_work
    return 1000 * longest


@pytest.fixture
def tiny_tokenizer() -> Tokenizer:
    return require_tokenizer(Tokenizer.from_folder(TINY))


def test_tokenising_lets_the_loop_run(tiny_tokenizer: Tokenizer) -> None:
    """100 KB once stopped every stream for a second; a busy machine alone costs some 50 ms."""
    text = "It was a bright cold day in April. " * 3000
    begin = time.perf_counter()
    tiny_tokenizer._inner.encode(text)
    taken_ms = 1000 * (time.perf_counter() - begin)

    pauses = [asyncio.run(longest_pause(lambda: tiny_tokenizer.encode(text))) for _ in range(3)]

    assert min(pauses) < taken_ms / 3


def test_a_text_that_cannot_fit_is_not_tokenised(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = tiny_tokenizer.max_token_bytes
    assert longest is not None

    def refuse(*_: object) -> None:
        raise AssertionError("it is tokenised")

    monkeypatch.setattr(tiny_tokenizer, "encode", refuse)
    with pytest.raises(PromptTooLong, match="at least 100 tokens, the model's limit is 100") as no:
        parse_prompt("é" * (longest * 99 // 2 + 1), tiny_tokenizer, 100)
    assert (no.value.given, no.value.limit) == (100, 99)
    with pytest.raises(AssertionError, match="it is tokenised"):
        parse_prompt("x" * longest * 99, tiny_tokenizer, 100)
