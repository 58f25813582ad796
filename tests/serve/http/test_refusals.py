"""What cannot be is refused by its name, in our words, and in exceptions of OpenAI's client."""

import inspect
import math
from typing import Any

import grpc
import openai
import pytest

import distkv_jax.errors
from distkv_jax.errors import DistKVError, EngineStopped
from serve.errors import TABLE, row_of
from serve.http.bodies import IGNORED, MAX_PROMPTS, NOT_BUILT
from serve.http.validate import shown
from tests.serve.http.asking import ask, changed
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    in_background,
    paused,
    running,
    wait_submitted,
)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"messages": [{"role": "user", "content": "hi"}]}
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
NOT_CONTENT = (
    'messages[0].content must be text or a list of parts {"type": "text", "text": TEXT}; '
    "images, audio and files are not built"
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_its_status_type_and_text(
    door: Running, body: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind("x=3 must be 4", **NUMBERS.get(kind.__name__, {}))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(door.server.dispatcher, "open_all", fail)
    row, answer = row_of(error), ask(door, COMPLETIONS, body)

    assert answer.status == row.http
    hidden = row.code is grpc.StatusCode.INTERNAL or kind is EngineStopped
    if hidden:
        assert "log" in answer.error["message"] and "x=3" not in answer.text
    text = answer.error["message"] if hidden else "x=3 must be 4"
    expected = {"message": text, "type": row.openai, "code": row.openai_code}
    assert answer.error | expected == answer.error
    assert answer.headers.get("retry-after") == (None if row.retry_s is None else "1")


def test_an_error_that_is_not_ours_is_500_and_not_shown(
    door: Running,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(door.server.dispatcher, "open_all", fail)
    answer = ask(door, COMPLETIONS, body)

    assert answer.status == TABLE[Exception].http == 500
    assert answer.error["message"] == "internal error, the server's log has it"
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"n": "1"}, "n", "n='1' must be an integer"),
        ({"n": True}, "n", "n=True must be an integer"),
        ({"n": 1.0}, "n", "n=1.0 must be an integer"),
        ({"n": 65}, "n", "n=65 must be an integer within 1..64"),
        ({"temperature": math.nan}, "temperature", "temperature=nan must be a finite number"),
        ({"top_p": math.inf}, "top_p", "top_p=inf must be a finite number"),
        ({"top_p": 2}, "top_p", "top_p=2.0 must be a finite number within (0, 1]"),
        ({"top_p": "1"}, "top_p", "top_p='1' must be a number"),
        ({"echo": 1}, "echo", "echo=1 must be true or false"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens=-1 must be an integer within"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens=0 must be at least 1, or go with echo"),
        ({"stop": [1]}, "stop", "stop must be a string or a list of at most 16 strings"),
        ({"stop": ["x"] * 17}, "stop", "stop must be a string or a list of at most 16 strings"),
        ({"stop_token_ids": [128]}, "stop_token_ids", "stop_token_ids has token id 128, the model"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]", "stop_token_ids[0]='1' must be an"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "logit_bias has 'a', must be integers"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias of token 5 is 101, must be within"),
        ({"logit_bias": []}, "logit_bias", "logit_bias=[] must be an object"),
        ({"bad_words": ["a" * 36]}, "bad_words", "bad word 'aaaaaa"),
        ({"logprobs": 21}, "logprobs", "logprobs=21 must be an integer within 0..20"),
        ({"priority": 2**31}, "priority", "priority=2147483648 must be at most 2147483647"),
        ({"request_id": "a b"}, "request_id", "request_id='a b' must be 1..128 printable"),
        ({"stream_options": {}}, "stream_options", "stream_options needs stream=true"),
        (
            {"stream": True, "stream_options": {"usage": True}},
            "stream_options.usage",
            "unknown field 'usage', known: include_usage",
        ),
        ({"temprature": 1}, "temprature", "unknown field 'temprature', known: allowed_token_ids, "),
        ({"prompt": ""}, "prompt", "prompt is empty, must have at least 1 character"),
        ({"prompt": []}, "prompt", "prompt=[] must be text, token ids, or a list of either"),
        ({"prompt": ["a", 1]}, "prompt", "prompt=['a', 1] must be text, token ids, or a list"),
        ({"prompt": [True]}, "prompt", "prompt=[True] must be text, token ids, or a list"),
        ({"prompt": [500]}, "prompt", "prompt has token id 500, the model has 0..127"),
        ({"prompt": [[5], [500]]}, "prompt", "prompt has token id 500, the model has 0..127"),
        ({"prompt": [-1]}, "prompt", "prompt has token id -1, the model has 0..127"),
        ({"prompt": [-1], "echo": True}, "prompt", "prompt has token id -1, the model has 0..127"),
        ({"prompt": [128], "echo": True}, "prompt", "prompt has token id 128, the model has"),
        (
            {"prompt": ["a"] * (MAX_PROMPTS + 1)},
            "prompt",
            f"prompt has {MAX_PROMPTS + 1} prompts, limit {MAX_PROMPTS}",
        ),
        ({"prompt": [7] * 300}, "prompt", "prompt has 300 tokens"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(
    door: Running, body: dict[str, Any], change: dict[str, Any], param: str, text: str
) -> None:
    answer = ask(door, COMPLETIONS, body | change)

    assert answer.status == 400
    assert (answer.error["param"], answer.error["type"]) == (param, "invalid_request_error")
    assert answer.error["message"].startswith(text)


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"messages": []}, "messages", "messages=[] must be a list of at least 1 entries"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "messages[0].role='tool' must be 'system', 'developer', 'user' or 'assistant'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            NOT_CONTENT,
        ),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 1}]},
            "messages[0].weight",
            "unknown field 'weight', known: annotations, audio, content, function_call, name, "
            "refusal, role, tool_calls",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs=true"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "logprobs=21 must be an integer within 0..20 or None",
        ),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens",
            "max_tokens=3 and max_completion_tokens=4 differ, one is enough",
        ),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(
    door: Running, change: dict[str, Any], param: str, text: str
) -> None:
    answer = ask(door, CHAT, USER | change)

    assert (answer.status, answer.error["param"]) == (400, param)
    assert answer.error["message"] == text


@pytest.mark.parametrize(
    ("path", "change", "text"),
    [
        (CHAT, {"tools": [{}]}, "tools=[{}] is not built, must be null or []"),
        (
            CHAT,
            {"response_format": {"type": "json_object"}},
            "response_format={'type': 'json_object'} is not built, must be null or "
            "{'type': 'text'}",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls=[{}] is not built, must be null or []",
        ),
        (COMPLETIONS, {"suffix": "x"}, "suffix='x' is not built, must be null or ''"),
        (COMPLETIONS, {"best_of": 2}, "best_of=2 is not built, must be null or 1"),
    ],
)
def test_what_is_not_built_is_said(
    door: Running, body: dict[str, Any], path: str, change: dict[str, Any], text: str
) -> None:
    answer = ask(door, path, (USER if path == CHAT else body) | change)

    assert (answer.status, answer.error["code"]) == (400, "not_built")
    assert answer.error["message"] == text
    assert answer.error["param"] == text.partition("=")[0]


def test_what_changes_nothing_is_taken(door: Running) -> None:
    harmless = {name: values[0] for name, values in NOT_BUILT.items() if values}
    for name in ("suffix", "best_of"):
        del harmless[name]
    body = USER | {"max_tokens": 1} | dict.fromkeys(IGNORED, "x") | harmless

    assert ask(door, CHAT, body).status == 200


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the body is not valid JSON: "),
        (b'{"prompt": "x"', "the body is not valid JSON: "),
        (b'{"prompt": "\\ud800"}', "the body is not valid JSON: "),
        (b"\xff\xfe", "the body is not valid JSON: "),
        (b"[" * 5000, "the body is not valid JSON: "),
        (b"[]", "the body is [], must be an object"),
        (b"7", "the body is 7, must be an object"),
        (b"{}", "prompt is missing"),
    ],
)
def test_a_body_that_is_no_request(door: Running, data: bytes, text: str) -> None:
    answer = ask(door, COMPLETIONS, data)

    assert answer.status == 400
    assert answer.error["message"].startswith(text)


def test_thousands_of_wrong_fields_are_one_error(door: Running) -> None:
    names = ",".join(f'"f{number}":1' for number in range(10_000))
    answer = ask(door, COMPLETIONS, f'{{"prompt":"x",{names}}}'.encode())

    assert answer.error["param"] == "f0"
    assert len(answer.text) < 2000


@pytest.mark.parametrize("name", ["x\n2026 CRITICAL \x1b[31mforged", "k" * 100_000, "\u2028"])
def test_a_field_of_any_name_makes_one_short_line_of_the_log(
    loop: Loop,
    shared_door: Running,
    body: dict[str, Any],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "distkv.requests")
    # Whose log has not had its share of refused requests.
    with running(loop, shared_door.llm, http_port=0) as door:
        answer = ask(door, COMPLETIONS, body | {name: 1})

    assert answer.status == 400
    assert answer.error["param"] == shown(name)
    assert len(answer.text) < 2000
    (line,) = (vars(record) for record in caplog.records if record.msg == "request ended")
    assert line["field"] == shown(name)
    assert line["field"].isprintable() and len(line["field"]) < 100


def test_a_field_that_is_null_asks_for_nothing(door: Running, body: dict[str, Any]) -> None:
    assert ask(door, COMPLETIONS, body | {"tomorrow": None}).status == 200


def test_openais_client_has_an_exception_for_each(
    client: openai.OpenAI, door: Running, body: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match="n=65 must be") as bad:
        client.completions.create(**body, n=65)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "n", "invalid_value", "invalid_request_error"
    )  # fmt: skip
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' does not exist") as unknown:
        client.completions.create(**changed(body, model="gpt"))
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    too_long = [7] * 257
    with pytest.raises(openai.BadRequestError, match="prompt has 257 tokens") as long:
        client.completions.create(**changed(body, prompt=too_long))
    assert long.value.code == "context_length_exceeded"


def test_a_name_is_used_by_one_live_request(
    client: openai.OpenAI, door: Running, body: dict[str, Any]
) -> None:
    with paused(door.llm):
        named = body | {"request_id": "same"}
        waits = in_background(ask, door, COMPLETIONS, named)
        wait_submitted(door, 1)
        with pytest.raises(openai.ConflictError, match="request_id 'same' is in use"):
            client.completions.create(**body, extra_body={"request_id": "same"})
    assert waits.result(TIMEOUT_S).status == 200


def test_one_prompt_that_cannot_be_ends_all(door: Running, body: dict[str, Any]) -> None:
    answer = ask(door, COMPLETIONS, body | {"prompt": [[5], [6] * 300]})

    assert answer.status == 400
    assert answer.error["message"].endswith("in prompt 1 of 2; none was answered")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(door: Running, body: dict[str, Any], value: str) -> None:
    answer = ask(door, COMPLETIONS, body, x_request_timeout=value)

    assert (answer.status, answer.error["param"]) == (400, "x-request-timeout")
    assert answer.error["message"] == (
        f"x-request-timeout='{value}' must be a number of seconds above 0"
    )
