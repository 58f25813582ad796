"""Each kind of error arrives as its row of the table says, with its text and its details."""

import inspect
from typing import Any

import grpc
import pytest

import distkv_jax.errors
from distkv_jax.errors import DistKVError, EngineStopped, PromptTooLong, RequestError
from serve.client.connection import heard_of
from serve.errors import DETAILS_KEY, KINDS_BY_REASON, MAX_TEXT_BYTES, TABLE, hear, row_of, tell
from serve.proto.distkv.v1 import inference_pb2 as pb
from tests.serve.running import (
    Failure,
    Running,
    failure_in,
    failure_of,
    paused,
    request_of,
    wait_submitted,
    wait_until,
)

Code = grpc.StatusCode
NUMBERS: dict[str, dict[str, int]] = {
    "PromptTooLong": {"given": 9, "limit": 7},
    "OutOfBlocks": {"needed": 9, "free": 7},
    "LendRefused": {"needed": 9, "free": 7},
}
KINDS = [
    kind
    for kind in vars(distkv_jax.errors).values()
    if inspect.isclass(kind) and issubclass(kind, DistKVError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_crosses_the_socket(
    service: Running, kind: type[DistKVError], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind("x=3 must be 4", **NUMBERS.get(kind.__name__, {}))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(service.server.dispatcher, "abort", fail)
    row = row_of(error)
    with pytest.raises(grpc.RpcError) as raised:
        service.inference.Abort(pb.AbortRequest(request_id="x"))

    text = shown_of(kind)
    failure = failure_in(raised.value)
    assert (failure.code, failure.text, failure.retry_s) == (row.code, text, row.retry_s)
    heard = heard_of(raised.value)
    assert heard.retry_s == row.retry_s
    if kind.__name__ in KINDS_BY_REASON:
        assert type(heard.error) is kind
    assert str(heard.error) == text
    if isinstance(heard.error, PromptTooLong):
        assert (heard.error.given, heard.error.limit) == (9, 7)


def shown_of(kind: type[DistKVError]) -> str:
    """What a caller reads of an error: nothing of the server's own trouble."""
    if kind is EngineStopped:
        return "the engine has stopped, the server's log says why"
    if next(TABLE[one] for one in kind.__mro__ if one in TABLE).code is Code.INTERNAL:
        return "internal error, the server's log has it"
    return "x=3 must be 4"


def test_every_row_is_of_an_error_that_crossed() -> None:
    assert {kind for kind in TABLE if kind is not Exception} <= set(KINDS)


def test_an_error_that_is_not_ours_is_internal_and_not_shown(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(service.server.dispatcher, "abort", fail)
    failure = failure_of(service.inference.Abort, pb.AbortRequest(request_id="x"))

    assert failure == Failure(Code.INTERNAL, "internal error, the server's log has it", {}, None)
    assert "a secret" in caplog.text


LONG = [7] * 300


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (request_of(1, n=65), "sampling.n", "n=65 must be an integer within 1..64"),
        (request_of(1, n=0), "sampling.n", "n=0 must be an integer within 1..64"),
        (request_of(1, top_p=2), "sampling.top_p", "top_p=2.0 must be a finite number within"),
        (
            request_of(1, temperature=float("nan")),
            "sampling.temperature",
            "temperature=nan must be a finite number at least 0",
        ),
        (request_of(1, max_tokens=-1), "sampling.max_tokens", "max_tokens=-1 must be an integer"),
        (
            request_of(1, max_tokens=4, no_max_tokens=True),
            "sampling.max_tokens",
            "max_tokens=4 and no_max_tokens exclude each other",
        ),
        (request_of(1, stop=["x"] * 17), "sampling.stop", "stop has 17 entries, limit 16"),
        (
            request_of(1, logit_bias={5: 101.0}),
            "sampling.logit_bias",
            "logit_bias of token 5 is 101.0, must be within",
        ),
        (
            request_of(1, stop_token_ids=[128]),
            "sampling.stop_token_ids",
            "stop_token_ids has token id 128, the model has 0..127",
        ),
        (
            request_of(1, bad_words=["aaaaaaaaa" * 4]),
            "sampling.bad_words",
            "bad word 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' has 36 tokens, allowed 1..8",
        ),
        (request_of(), "prompt", "prompt is not set, must be text or token_ids"),
        (
            pb.GenerateRequest(token_ids=pb.TokenIds()),
            "prompt",
            "prompt is empty, must have at least 1 token",
        ),
        (pb.GenerateRequest(text=""), "prompt", "prompt is empty, must have at least 1 character"),
        (request_of(128), "prompt", "prompt has token id 128, the model has 0..127"),
        (request_of(-1), "prompt", "prompt has token id -1, the model has 0..127"),
        (request_of(*LONG), "prompt", "prompt has 300 tokens, the model's limit is 256 with"),
        (request_of(1, request_id="a b"), "request_id", "request_id='a b' must be printable"),
        (
            request_of(1, request_id="a" * 129),
            "request_id",
            "request_id has 129 characters, limit 128",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("rpc", ["Generate", "GenerateStream"])
def test_what_is_wrong_with_a_request_names_field_value_and_limit(
    service: Running, request_: pb.GenerateRequest, field: str, text: str, rpc: str
) -> None:
    failure = failure_of(getattr(service.inference, rpc), request_)

    assert failure.code is Code.INVALID_ARGUMENT
    assert failure.text.startswith(text)
    assert failure.fields == {field: failure.text}


def test_the_client_raises_our_errors_with_the_servers_text(service: Running) -> None:
    with pytest.raises(PromptTooLong, match="the model's limit is 256") as raised:
        service.client.generate(LONG)

    assert (raised.value.given, raised.value.limit) == (300, 255)


def test_a_live_request_id_is_refused_and_free_again_after_its_end(service: Running) -> None:
    stream = service.client.stream([5], {"max_tokens": 200, "ignore_eos": True}, request_id="one")
    next(stream)
    failure = failure_of(service.inference.Generate, request_of(5, request_id="one"))
    stream.close()

    assert failure.code is Code.ALREADY_EXISTS
    assert failure.text == "request_id 'one' is in use by a live request"
    wait_until(lambda: not service.server.dispatcher.quota.num_requests, "it ends")
    assert service.inference.Generate(request_of(5, request_id="one", max_tokens=1)).outputs


def test_a_full_queue_is_told_with_a_time_to_come_back(service: Running) -> None:
    params: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
    with paused(service.llm):
        calls = [service.inference.Generate.future(request_of(5, 6, **params)) for _ in range(60)]
        wait_submitted(service, 60)
    failures, served = [], 0
    for call in calls:
        try:
            call.result()
            served += 1
        except grpc.RpcError as error:
            failures.append(failure_in(error))

    assert served == 40
    assert {failure.code for failure in failures} == {Code.RESOURCE_EXHAUSTED}
    assert failures[0].text == "1 requests behind 40 waiting, limit 40"
    assert failures[0].retry_s == 1.0


def test_a_backlog_of_tokens_is_refused_but_never_the_first_request(service: Running) -> None:
    with paused(service.llm):
        calls = [
            service.inference.Generate.future(request_of(*[5] * 150, max_tokens=1))
            for _ in range(4)
        ]
        wait_submitted(service, 4)
    failures = [failure_in(call.exception()) for call in calls if call.exception() is not None]

    assert [failure.text for failure in failures] == [
        "150 prompt tokens behind 300 waiting, limit 400"
    ] * 2
    assert failures[0].code is Code.RESOURCE_EXHAUSTED


def test_an_unknown_method_is_unimplemented(service: Running) -> None:
    call = service.channel.unary_unary("/distkv.v1.Inference/Embed")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"")

    assert failure_in(raised.value)[:2] == (
        Code.UNIMPLEMENTED,
        "there is no method /distkv.v1.Inference/Embed",
    )


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "Abort"])
def test_bytes_that_are_no_message_are_an_invalid_argument(service: Running, method: str) -> None:
    make = service.channel.unary_stream if "Stream" in method else service.channel.unary_unary
    failure = failure_of(make(f"/distkv.v1.Inference/{method}"), b"\xff\xff\xff")

    assert failure.code is Code.INVALID_ARGUMENT
    assert failure.text == "the request is not a valid message of its type"


def test_a_long_text_is_cut_to_fit_into_trailers() -> None:
    told = tell(RequestError("ä" * 100_000 + "end"))

    assert len(told.text.encode()) <= MAX_TEXT_BYTES
    assert told.text.endswith("end")
    assert len(dict(told.metadata)[DETAILS_KEY]) < 2000


def test_a_status_of_another_server_is_understood_by_its_code() -> None:
    assert type(hear(Code.UNKNOWN, "?", ()).error) is DistKVError
    assert type(hear(Code.INVALID_ARGUMENT, "?", ()).error) is RequestError
    assert isinstance(hear(Code.UNAVAILABLE, "?", ((DETAILS_KEY, b"\xff"),)).error, Exception)


def test_a_stopped_engine_is_unavailable_and_only_the_log_says_why(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise EngineStopped("the engine takes no requests: it failed: a bug")

    monkeypatch.setattr(service.llm.thread, "submit_soon", refuse)
    failure = failure_of(service.inference.Generate, request_of(5))

    assert failure.code is Code.UNAVAILABLE
    assert failure.text == "the engine has stopped, the server's log says why"
    assert "it failed: a bug" in caplog.text
