"""What the engine gave before its reader came is there all the same, errors included."""

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DeadlineExceeded
from serve.gate import ARRIVAL, CALLER
from serve.inference_service import InferenceService
from serve.keys import ANYBODY
from serve.proto.distkv.v1 import inference_pb2 as pb
from serve.stream import Stream
from serve.translate import add_updates
from tests.serve.running import record_of

REQUEST = Request(request_id="r", prompt_token_ids=(5, 6), params=SamplingParams())


class HastyDispatcher:
    """Opens streams of requests that the engine has ended by then."""

    def __init__(self, finish_reason: str) -> None:
        self.finish_reason = finish_reason
        self.llm = types.SimpleNamespace(get_default_sampling_params=SamplingParams)

    def reading(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.asynccontextmanager
    async def open(self, *args: Any, is_whole: bool, **kwargs: Any) -> AsyncIterator[Stream]:
        assert is_whole
        stream = Stream("r", record_of(REQUEST), max_unread=None)
        stream.begin(REQUEST)
        stream.add(Update(REQUEST, 0, token_ids=(7,), text="end", finish_reason=self.finish_reason))
        yield stream


def generate(finish_reason: str) -> pb.GenerateResponse:
    service = InferenceService(HastyDispatcher(finish_reason), "m")  # pyright: ignore[reportArgumentType] (a stand-in)
    context = types.SimpleNamespace(time_remaining=lambda: None, invocation_metadata=lambda: None)
    request = pb.GenerateRequest(text="x")

    async def call() -> pb.GenerateResponse:
        CALLER.set(ANYBODY)
        ARRIVAL.set(0.0)
        return await service.Generate(request, context)

    return asyncio.run(call())


def test_a_unary_answer_has_what_came_before_it_was_waited_for() -> None:
    answer = generate("length")

    assert [(one.text, list(one.token_ids)) for one in answer.outputs] == [("end", [7])]


def test_a_unary_answer_raises_what_went_wrong_before_it_was_waited_for() -> None:
    with pytest.raises(DeadlineExceeded):
        generate("deadline")


def test_texts_of_many_updates_are_joined_after_what_a_message_has() -> None:
    message = pb.GenerateResponse()
    message.outputs.add(index=1, text="so ")

    add_updates(
        message,
        [Update(REQUEST, index, text=text) for index, text in [(1, "it "), (0, "x"), (1, "goes")]],
    )

    assert {one.index: one.text for one in message.outputs} == {0: "x", 1: "so it goes"}
