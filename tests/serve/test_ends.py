"""Whatever ends a request, its RPC ends with a status and its blocks are free within two steps."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import (
    DeadlineExceeded,
    RequestCancelled,
    RequestLost,
    RequestNotFound,
    SlowReader,
    Unavailable,
)
from serve.ask import Ask
from serve.client import AsyncClient
from serve.keys import ANYBODY
from serve.proto.distkv.v1 import inference_pb2_grpc
from serve.stream import Stream, error_of
from tests.serve.cancels import Cancels, watched_cancels
from tests.serve.running import (
    Loop,
    Running,
    a_stream,
    failure_of,
    in_background,
    paused,
    request_of,
    running,
    wait_until,
)

ROOT = Path(__file__).parents[2]
ENDLESS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}


@pytest.fixture
def cancels(service: Running) -> Iterator[Cancels]:
    with watched_cancels(service.llm) as seen:
        yield seen


def test_leaving_a_stream_frees_its_blocks(service: Running, cancels: Cancels) -> None:
    stream = service.client.stream([5] * 20, ENDLESS)
    next(stream)
    stream.close()

    wait_until(lambda: cancels.after, "the engine hears of it")
    cancels.check()


def test_cancelling_a_whole_answer_frees_its_blocks(service: Running, cancels: Cancels) -> None:
    async def leave() -> None:
        async with AsyncClient(service.address) as client:
            task = asyncio.create_task(client.generate([5] * 20, ENDLESS))
            while not service.server.dispatcher.quota.num_requests:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    service.loop.run(leave())
    wait_until(lambda: cancels.after, "the engine hears of it")
    cancels.check()


def test_a_killed_client_frees_its_blocks(service: Running, cancels: Cancels) -> None:
    code = (
        "from serve.client import Client\n"
        f"for _ in Client('{service.address}').stream([5] * 20, {ENDLESS}): print(flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
    finally:
        process.kill()
        process.communicate()

    wait_until(lambda: cancels.after, "the engine hears of it")
    cancels.check()


def test_abort_ends_a_request_of_the_same_caller(service: Running, cancels: Cancels) -> None:
    stream = service.client.stream([5] * 20, ENDLESS, request_id="mine")
    next(stream)
    service.client.abort("mine")

    with pytest.raises(RequestCancelled, match="the request was aborted"):
        list(stream)
    cancels.check()


def test_abort_of_nothing_says_so(service: Running) -> None:
    with pytest.raises(RequestNotFound, match="'mine' is of no live request of yours"):
        service.client.abort("mine")


def test_a_deadline_in_the_queue_means_no_prefill(service: Running) -> None:
    computed = service.llm.stats().num_computed_tokens
    with paused(service.llm):
        failure = failure_of(service.inference.Generate, request_of(5, 6, 7), timeout=0.2)

    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not service.server.dispatcher.quota.num_requests, "it ends")
    assert service.llm.stats().num_computed_tokens == computed


def test_a_deadline_ends_a_request_that_runs(service: Running) -> None:
    stream = service.inference.GenerateStream(
        request_of(*[5] * 20, **ENDLESS, n=8, temperature=1.0), timeout=0.5
    )
    next(stream)
    failure = failure_of(list, stream)

    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_engine_ends_what_is_overdue_with_a_text(service: Running) -> None:
    """Where the engine's clock is first; over a socket the client's own clock often is."""

    async def ask() -> None:
        late = Ask([5, 6], SamplingParams(), deadline=time.monotonic() - 1)
        async with service.server.dispatcher.open(ANYBODY, late, is_whole=True) as stream:
            await stream.take()

    with pytest.raises(DeadlineExceeded, match="the deadline passed before the request ended"):
        service.loop.run(ask())


def test_the_client_raises_its_own_deadline_as_ours(service: Running) -> None:
    with paused(service.llm), pytest.raises(DeadlineExceeded):
        service.client.generate([5], timeout_s=0.2)


def test_a_reader_that_stops_reading_is_cut_off(loop: Loop, shared: Running) -> None:
    """With 20 log-probabilities a token, and a client that takes little ahead."""
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with (
        running(loop, shared.llm, max_unread_tokens=20) as service,
        grpc.insecure_channel(service.address, small) as channel,
    ):
        params: dict[str, Any] = ENDLESS | {"temperature": 1.0, "n": 8, "logprobs": 20}
        request = request_of(5, **params)
        stream = inference_pb2_grpc.InferenceStub(channel).GenerateStream(request)
        next(stream)
        wait_until(lambda: not shared.llm.pool().placement, "its blocks are free")
        failure = failure_of(list, stream)

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.text.endswith("tokens were not read, limit 20")
    assert failure.retry_s is None


def update_of(stream: Stream, token: int, finish_reason: str | None = None) -> Update:
    return Update(stream.request, 0, (token,), finish_reason=finish_reason)


def test_what_was_not_read_comes_at_once_and_no_more_than_the_limit_is_kept() -> None:
    async def read() -> None:
        stream = a_stream(max_unread=3)
        for token in (1, 2, 3):
            stream.add(update_of(stream, token))
        assert [one.token_ids for one in await stream.take()] == [(1,), (2,), (3,)]
        for token in (4, 5, 6, 7):
            stream.add(update_of(stream, token))
        with pytest.raises(SlowReader, match="4 tokens were not read, limit 3"):
            await stream.take()

    asyncio.run(read())


def test_who_wants_the_whole_answer_is_woken_once() -> None:
    async def read() -> None:
        stream = a_stream(max_unread=None)
        taken = asyncio.create_task(stream.take())
        for token in range(1000):
            stream.add(update_of(stream, token))
            await asyncio.sleep(0)
        assert not taken.done()
        stream.add(update_of(stream, 1000, "length"))
        assert len(await taken) == 1001

    asyncio.run(read())


def test_the_loop_is_woken_once_a_step_at_most_and_only_for_who_waits(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, wakes = service.server.dispatcher, []

    class Watched:
        def call_soon_threadsafe(self, function: Any, *arguments: Any) -> None:
            wakes.append(function)
            service.loop.call_soon_threadsafe(function, *arguments)

    monkeypatch.setattr(dispatcher.delivery, "_loop", Watched())
    params = {"max_tokens": 50, "ignore_eos": True}
    service.client.generate([5, 6], params | {"n": 4})
    # The first token ends the waiting of its quota, then each sample has its end.
    assert len(wakes) <= 5

    wakes.clear()
    list(service.client.stream([5, 6], params | {"n": 4}))
    assert len(wakes) <= 60


def test_rounds_come_at_their_pace_and_none_is_lost(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step gave before a pause is not held back."""
    monkeypatch.setattr(service.server.dispatcher.delivery, "_pace", SlowPace())
    stream = service.client.stream([5, 6], {"max_tokens": 100, "ignore_eos": True})
    counts = [len(next(stream).outputs[0].token_ids) for _ in range(2)]
    with paused(service.llm):
        # The steps so far are told although no other follows.
        counts.append(len(next(stream).outputs[0].token_ids))
    counts.extend(len(output.outputs[0].token_ids) for output in stream)

    assert counts[2] > counts[1]
    assert counts[-1] == 100
    assert len(counts) < 100 / 3


class SlowPace:
    """Rounds are 50 ms apart."""

    def next_round(self) -> float:
        return 0.05


@pytest.mark.parametrize(
    ("reason", "has_begun", "expected"),
    [
        ("stop", True, None),
        ("length", False, None),
        (None, True, None),
        ("cancelled", True, RequestCancelled("the request was cancelled")),
        ("deadline", True, DeadlineExceeded("the deadline passed before the request ended")),
        ("error", False, Unavailable("request 'r' failed, the server's log says why")),
        ("error", True, RequestLost("request 'r' failed, the server's log says why")),
    ],
)
def test_an_end_before_its_time_has_its_error(
    reason: str | None,
    has_begun: bool,
    expected: Exception | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the engine says of its own trouble is in the log alone."""
    stream = a_stream(max_unread=1)
    stream.record.num_tokens = int(has_begun)
    update = Update(stream.request, 0, finish_reason=reason, error="no /home/me/x on 10.0.0.7")

    assert repr(error_of(update, stream.record)) == repr(expected)
    logged = ["request 'r' failed: no /home/me/x on 10.0.0.7"] if reason == "error" else []
    assert caplog.messages == logged


def test_512_streams_with_random_ends_leave_nothing(service: Running) -> None:
    """Cancelled, too late, aborted, refused, or finished: each RPC has an end."""

    async def one(client: AsyncClient, number: int) -> str:
        params = {"max_tokens": 2 + number % 5, "ignore_eos": True, "n": 1 + number % 2}
        prompt = [3 + number % 100] * (1 + number % 30)
        timeout_s = 0.05 if number % 11 == 0 else None
        try:
            count = 0
            async for output in client.stream(
                prompt, params, request_id=f"n{number}", timeout_s=timeout_s
            ):
                count += 1
                if number % 7 == 0:
                    return "left"
                if number % 13 == 0 and not output.finished:
                    await client.abort(f"n{number}")
            return "finished"
        except Exception as error:
            return type(error).__name__

    async def everybody() -> list[str]:
        async with AsyncClient(service.address, max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(512)))

    ends = service.loop.run(everybody())

    assert len(ends) == 512
    assert set(ends) <= {
        "finished",
        "left",
        "QueueFull",
        "DeadlineExceeded",
        "RequestCancelled",
        "RequestNotFound",
    }
    assert {"finished", "QueueFull"} <= set(ends)


def test_a_second_request_under_an_aborted_ones_name_is_its_own(service: Running) -> None:
    """Late news of the first must not reach the second."""
    for _ in range(5):
        first = service.client.stream([5] * 8, ENDLESS, request_id="again")
        next(first)
        ended = in_background(list, first)
        service.client.abort("again")
        with pytest.raises(RequestCancelled):
            ended.result(20)
        wait_until(lambda: not service.server.dispatcher.quota.num_requests, "it ends")
        answer = service.inference.Generate(request_of(6, request_id="again", max_tokens=3))
        assert len(answer.outputs[0].token_ids) <= 3
