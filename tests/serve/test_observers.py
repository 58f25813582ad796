"""Observers hear of every request from arrival to end, and none of their faults reaches one."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import serve.server
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import RequestError
from serve.ask import Ask
from serve.keys import Caller
from serve.observe.audience import Audience
from serve.observe.record import Observer, Record
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    paused,
    request_of,
    running,
    wait_until,
)


class Listener(Observer):
    """Writes down what it hears, and can fail at all of it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.gaps: list[float] = []
        self.records: list[Record] = []
        self.is_broken = False
        self.has_ended = threading.Event()

    def on_begin(self, record: Record) -> None:
        self._hear("begin")

    def on_first_token(self, record: Record) -> None:
        self._hear("first")

    def on_gap(self, record: Record, seconds: float) -> None:
        self.gaps.append(seconds)
        self._hear("gap")

    def on_end(self, record: Record) -> None:
        self.records.append(record)
        self.has_ended.set()
        self._hear("end")

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        if self.is_broken:
            raise RuntimeError("a fault of an observer")


@pytest.fixture
def listener(service: Running) -> Iterator[Listener]:
    one = Listener()
    with contextlib.ExitStack() as undo:
        dispatcher = service.server.dispatcher
        before = dispatcher._audience
        undo.callback(setattr, dispatcher, "_audience", before)
        dispatcher._audience = Audience([*before.observers, one])
        yield one


def test_a_request_is_heard_from_arrival_to_end(service: Running, listener: Listener) -> None:
    answer = service.inference.Generate(request_of(1, 2, 3, max_tokens=4, request_id="a"))
    wait_until(listener.has_ended.is_set, "the end is heard")
    assert listener.heard == ["begin", "first", "gap", "gap", "gap", "end"]
    (record,) = listener.records
    assert (record.request_id, record.operation) == ("a", "grpc.Generate")
    assert record.num_prompt_tokens == answer.usage.prompt_tokens == 3
    assert record.num_tokens == answer.usage.completion_tokens == 4
    assert record.finish_reasons == ["length"] and record.error is None
    assert record.scheduled is not None and record.first_token is not None
    assert record.arrival < record.scheduled < record.first_token
    assert record.end == pytest.approx(record.first_token + sum(listener.gaps))


def test_gaps_are_those_of_a_sample(service: Running, listener: Listener) -> None:
    list(service.inference.GenerateStream(request_of(1, 2, 3, max_tokens=3, n=2)))
    wait_until(listener.has_ended.is_set, "the end is heard")
    # The first token of the second sample is neither the request's first nor has one before it.
    assert sorted(listener.heard) == sorted(["begin", "first", *["gap"] * 4, "end"])
    assert listener.records[0].finish_reasons == ["length", "length"]


def test_refused_ones_are_heard_with_their_error(service: Running, listener: Listener) -> None:
    failure = failure_of(service.inference.Generate, request_of(999_999))
    wait_until(listener.has_ended.is_set, "the end is heard")
    assert listener.heard == ["begin", "end"]
    assert str(listener.records[0].error) == failure.text
    assert listener.records[0].scheduled is None


def test_who_leaves_is_heard_as_cancelled(service: Running, listener: Listener) -> None:
    with paused(service.llm):
        call = service.inference.GenerateStream(request_of(1, 2, 3, max_tokens=40))
        wait_until(lambda: listener.heard == ["begin"], "it begins")
        call.cancel()
        wait_until(listener.has_ended.is_set, "the end is heard")
    assert type(listener.records[0].error).__name__ == "CancelledError"


@pytest.mark.parametrize(("token", "sampling"), [(1, {}), (1, {"top_p": 2.0}), (999_999, {})])
def test_a_request_arrives_before_it_is_read(
    loop: Loop,
    shared: Running,
    monkeypatch: pytest.MonkeyPatch,
    token: int,
    sampling: dict[str, Any],
) -> None:
    looked: list[tuple[float, int]] = []

    def look(message: bytes) -> None:
        del message
        looked.append((time.monotonic(), time.time_ns()))

    checks = {"/distkv.v1.Inference/Generate": look}
    monkeypatch.setattr(serve.server, "checks_of", lambda _: checks)
    one = Listener()
    with running(loop, shared.llm) as service:
        service.server.dispatcher._audience = Audience([one])
        with contextlib.suppress(grpc.RpcError):
            service.inference.Generate(request_of(token, max_tokens=1, **sampling))
        wait_until(one.has_ended.is_set, "the end is heard")

    (record,) = one.records
    ((moment, moment_ns),) = looked
    assert record.end is not None and record.arrival < moment < record.end
    assert record.arrival_ns < moment_ns
    # What could not be read has no parameters, not those of nobody.
    assert (record.params is None) == ("top_p" in sampling)


def test_the_times_of_a_call_begin_where_its_door_says(service: Running) -> None:
    listener, dispatcher = Listener(), service.server.dispatcher
    arrival, now_ns = time.monotonic() - 5.0, time.time_ns()
    caller, before = Caller("", is_admin=False), service.server.dispatcher._audience

    async def call() -> None:
        dispatcher._audience = Audience([listener])
        params = SamplingParams(max_tokens=1)
        async with dispatcher.open(caller, Ask([1], params, arrival=arrival), is_whole=True) as one:
            await one.take()
        with pytest.raises(RequestError), dispatcher.reading(caller, "test", arrival=arrival):
            raise RequestError("wrong")
        dispatcher._audience = before

    service.loop.run(call())
    assert [record.arrival for record in listener.records] == [arrival] * 2
    for record in listener.records:
        assert record.end is not None and record.end - record.arrival >= 5.0
        assert now_ns - record.arrival_ns == pytest.approx(5e9, abs=1e9)


def test_nobody_is_called_for_what_he_does_not_hear() -> None:
    listener = Listener()
    audience = Audience([Observer(), listener])
    bound = (audience._on_begin, audience._on_first_token, audience._on_gap, audience._on_end)
    names = ("on_begin", "on_first_token", "on_gap", "on_end")
    assert bound == tuple((getattr(listener, name),) for name in names)


def test_faults_of_observers_reach_no_request(
    service: Running, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    listener.is_broken = True
    answer = service.inference.Generate(request_of(1, 2, 3, max_tokens=4))
    assert answer.outputs[0].finish.reason
    wait_until(listener.has_ended.is_set, "the end is heard")
    assert len(listener.heard) == 6
    assert "an observer failed" in caplog.text
