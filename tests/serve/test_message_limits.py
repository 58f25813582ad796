"""A message far over its limits is refused before it is parsed: the loop has others to serve."""

import asyncio
import time
from typing import Any

import pytest

from distkv_jax.engine.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from distkv_jax.errors import PromptTooLong, RequestError
from serve.errors import FieldError
from serve.message_limits import MAX_FIELDS, check_generate
from serve.proto.distkv.v1 import inference_pb2 as pb
from serve.translate import sampling_of
from tests.serve.running import Code, Running, failure_of, in_background

MODEL_LEN = 40_000
METHODS = ["Generate", "GenerateStream"]


def padded(message: pb.GenerateRequest) -> bytes:
    """A message so large that it is looked at; the unknown field is of nobody's concern."""
    return b"\xfa\x07\x80\x80\x04" + bytes(65_536) + message.SerializeToString()


def call_raw(service: Running, method: str, message: bytes) -> Any:
    path = f"/distkv.v1.Inference/{method}"
    if method == "Generate":
        return failure_of(service.channel.unary_unary(path), message)
    return failure_of(service.channel.unary_stream(path), message)


@pytest.mark.parametrize("method", METHODS)
def test_a_flood_of_token_ids_does_not_hold_the_loop(service: Running, method: str) -> None:
    message = pb.GenerateRequest()
    message.token_ids.ids.extend([1] * 15_000_000)
    sent, pauses = message.SerializeToString(), list[float]()

    async def watch() -> None:
        while not answer.done():
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            pauses.append(time.perf_counter() - begin)

    answer = in_background(call_raw, service, method, sent)
    service.loop.run(watch())
    failure = answer.result()

    assert failure.code is Code.INVALID_ARGUMENT
    assert failure.text.startswith("prompt has 15000005 bytes of token ids, at least 2500000 tok")
    assert set(failure.fields) == {"prompt"}
    # Parsing alone takes 150 ms with nothing else to do.
    assert max(pauses) < 0.1


def test_what_is_within_limits_passes() -> None:
    sampling = pb.SamplingParams(
        stop=["𝄞" * MAX_STOP_STRING_CHARS] * MAX_STOP_STRINGS,
        bad_words=["𝄞" * MAX_STOP_STRING_CHARS] * MAX_BAD_WORDS,
        stop_token_ids=[2**31 - 1] * MAX_STOP_TOKEN_IDS,
        allowed_token_ids=[2**31 - 1] * MAX_ALLOWED_TOKEN_IDS,
        logit_bias={2**31 - number: 1.0 for number in range(1, MAX_LOGIT_BIAS + 1)},
        n=2**62,
        max_tokens=2**62,
        seed=-1,
    )
    message = pb.GenerateRequest(
        request_id="x" * 128, priority=-1, return_prompt_token_ids=True, sampling=sampling
    )
    message.token_ids.ids.extend([2**31 - 1] * MODEL_LEN)

    check_generate(padded(message), MODEL_LEN)


def test_too_much_sampling_is_refused() -> None:
    message = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(stop=["ab"] * 200_000))

    with pytest.raises(FieldError, match="sampling has 800000 bytes, limit") as raised:
        check_generate(message.SerializeToString(), MODEL_LEN)
    assert raised.value.field == "sampling"


@pytest.mark.parametrize(
    "before",
    [
        b"\x28\x01",
        b"\xa1\x06" + bytes(8),
        b"\xa5\x06" + bytes(4),
        b"\xa3\x06\x28\x01\xa4\x06",
        b"\xa2\x06\x03abc",
    ],
    ids=["priority", "fixed64", "fixed32", "group", "bytes"],
)
def test_nothing_hides_what_comes_after_it(before: bytes) -> None:
    message = pb.GenerateRequest()
    message.token_ids.ids.extend([1] * 300_000)
    encoded = before + message.SerializeToString()
    assert len(pb.GenerateRequest.FromString(encoded).token_ids.ids) == 300_000

    with pytest.raises(PromptTooLong):
        check_generate(encoded, MODEL_LEN)


def test_fields_given_many_times_are_refused() -> None:
    with pytest.raises(RequestError, match=f"more than {MAX_FIELDS} fields"):
        check_generate(b"\x28\x01" * 100_000, MODEL_LEN)
    several = pb.GenerateRequest()
    several.token_ids.ids.extend([1] * 100_000)
    with pytest.raises(PromptTooLong):
        check_generate(several.SerializeToString() * 3, MODEL_LEN)


@pytest.mark.parametrize("broken", [b"\xff" * 70_000, b"\x1a\xff\xff\xff\xff\x0f" + bytes(70_000)])
def test_what_is_broken_is_left_to_the_parser_or_refused(service: Running, broken: bytes) -> None:
    assert call_raw(service, "Generate", broken).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("name", "entries", "limit"),
    [
        ("stop", ["a"] * 17, MAX_STOP_STRINGS),
        ("bad_words", ["a"] * 33, MAX_BAD_WORDS),
        ("stop_token_ids", [1] * 129, MAX_STOP_TOKEN_IDS),
        ("allowed_token_ids", [1] * 65_537, MAX_ALLOWED_TOKEN_IDS),
        ("logit_bias", dict.fromkeys(range(1025), 1.0), MAX_LOGIT_BIAS),
    ],
)
def test_lists_are_counted_before_they_are_copied(name: str, entries: Any, limit: int) -> None:
    message = pb.SamplingParams(**{name: entries})

    with pytest.raises(FieldError, match=f"{name} has {limit + 1} entries, limit {limit}") as no:
        sampling_of(message, None)  # pyright: ignore[reportArgumentType] (not reached)
    assert no.value.field == f"sampling.{name}"
