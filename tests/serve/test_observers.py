"""Observers hear of every request from arrival to end, and none of their faults reaches one."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from serve.observe.record import Observer, Record
from tests.serve.running import Running, failure_of, paused, request_of, wait_until


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
        before = dispatcher._observers
        undo.callback(setattr, dispatcher, "_observers", before)
        dispatcher._observers = (*before, one)
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


def test_faults_of_observers_reach_no_request(
    service: Running, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    listener.is_broken = True
    answer = service.inference.Generate(request_of(1, 2, 3, max_tokens=4))
    assert answer.outputs[0].finish.reason
    wait_until(listener.has_ended.is_set, "the end is heard")
    assert len(listener.heard) == 6
    assert "an observer failed" in caplog.text
