"""Every end of a request has one word, and a deadline is one also when gRPC only says cancelled."""

import asyncio

import grpc
import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DeadlineExceeded, QueueFull
from serve.http.body import ClientGone
from serve.observe.outcome import outcome_of
from serve.observe.record import Record


@pytest.mark.parametrize(
    ("error", "deadline", "reasons", "outcome"),
    [
        (None, None, ["stop"], "stop"),
        (None, None, ["stop", "length"], "length"),
        (QueueFull("full"), None, [], "RESOURCE_EXHAUSTED"),
        (DeadlineExceeded("late"), 9.0, [], "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), None, [], "CANCELLED"),
        (asyncio.CancelledError(), 11.0, [], "CANCELLED"),
        (asyncio.CancelledError(), 10.01, [], "DEADLINE_EXCEEDED"),
        (grpc.aio.InternalError(), None, ["stop"], "CANCELLED"),
        (ClientGone(), None, [], "CANCELLED"),
        (GeneratorExit(), None, [], "CANCELLED"),
        (ZeroDivisionError(), None, [], "INTERNAL"),
    ],
)
def test_ends_have_one_word(
    error: BaseException | None, deadline: float | None, reasons: list[str], outcome: str
) -> None:
    record = Record(
        request_id="a",
        caller="",
        operation="test",
        params=SamplingParams(),
        carrier={},
        deadline=deadline,
        end=10.0,
        finish_reasons=reasons,
        error=error,
    )
    assert outcome_of(record) == outcome
