"""What a call brings with it reaches the engine, and its answer tells what it took."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from distkv_jax.engine.outputs import Update
from distkv_jax.errors import RequestError
from serve.ask import Ask
from serve.keys import Caller
from serve.observe.audience import Audience
from serve.observe.record import Observer, Record
from tests.serve.http.asking import ask, events_of
from tests.serve.running import TIMEOUT_S, Running, in_background, paused, wait_submitted


def test_a_prompt_judged_alone_ends_by_its_length(door: Running, body: dict[str, Any]) -> None:
    """Whatever the token is that nobody asked for."""
    silent = body | {"max_tokens": 0, "echo": True}
    stops = {"logit_bias": {"75": 100}, "stop_token_ids": [75]}
    choices = [ask(door, "/v1/completions", silent | stops).json["choices"][0]]
    *events, _ = events_of(ask(door, "/v1/completions", silent | stops | {"stream": True}).text)
    choices += [event["choices"][0] for event in events]

    assert [(one["text"], one["finish_reason"], one["stop_reason"]) for one in choices] == [
        ("hello", "length", None)
    ] * 2


def test_usage_tells_what_was_there_and_who_computed(
    door: Running, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Record.hear

    def hears(record: Record, update: Update, now: float) -> float | None:
        gap = hear(record, update, now)
        record.num_cached_tokens, record.remote_kv_tokens = 16, 8
        record.instances_used = {len(update.request.prompt_token_ids)}
        return gap

    monkeypatch.setattr(Record, "hear", hears)
    usage = ask(door, "/v1/completions", body | {"prompt": ["hello", "you"]}).json["usage"]

    assert usage["prompt_tokens_details"] == {"cached_tokens": 32}
    assert usage["distkv"] == {"remote_kv_tokens": 8, "instances_used": [3, 5]}


@pytest.mark.parametrize("logprobs", [{"echo": True, "logprobs": 2}, {"prompt_logprobs": 2}])
def test_every_streamed_sample_begins_with_its_prompt(
    door: Running, body: dict[str, Any], logprobs: dict[str, Any]
) -> None:
    """A sample may be first with a token before the prompt's log-probabilities are there."""
    asked = body | {"prompt": [5] * 40, "n": 3, "temperature": 1} | logprobs
    whole = ask(door, "/v1/completions", asked).json["choices"]
    *events, _ = events_of(ask(door, "/v1/completions", asked | {"stream": True}).text)

    for index, choice in enumerate(whole):
        first = next(
            event["choices"][0] for event in events if event["choices"][0]["index"] == index
        )
        if "echo" in logprobs:
            assert first["logprobs"]["tokens"][:40] == choice["logprobs"]["tokens"][:40]
        else:
            assert [set(one or ()) for one in first["prompt_logprobs"]] == [
                set(one or ()) for one in choice["prompt_logprobs"]
            ]


def test_a_stop_string_is_told(door: Running, body: dict[str, Any]) -> None:
    text = ask(door, "/v1/completions", body).json["choices"][0]["text"]
    answer = ask(door, "/v1/completions", body | {"stop": text[3]}).json

    assert answer["choices"][0]["text"] == text[:3]
    assert answer["choices"][0]["stop_reason"] == text[3]


def test_without_a_limit_a_chat_has_what_the_checkpoint_recommends(door: Running) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}

    assert ask(door, "/v1/chat/completions", body).json["usage"]["completion_tokens"] == 7


def test_a_stream_is_server_sent_events(door: Running, body: dict[str, Any]) -> None:
    answer = ask(door, "/v1/completions", body | {"stream": True})

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *pieces, last = events_of(answer.text)
    assert last == "[DONE]"
    assert all(set(piece) == {"id", "object", "created", "model", "choices"} for piece in pieces)


def test_a_request_has_the_name_it_was_given(door: Running, body: dict[str, Any]) -> None:
    answer = ask(door, "/v1/completions", body, x_request_id="letter-1")
    assert answer.headers["x-request-id"] == "letter-1"
    assert answer.json["id"] == "cmpl-letter-1"

    answer = ask(door, "/v1/completions", body | {"request_id": "letter-2"}, x_request_id="a b")
    assert answer.headers["x-request-id"] == "letter-2"

    answer = ask(door, "/nowhere", x_request_id="a b")
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("prompt", ["hello", ["hello", "you"]], ids=["one", "two"])
@pytest.mark.parametrize("name", ["letter", "l" * 128])
def test_calls_of_one_correlation_id_at_once_have_names_of_their_own(
    door: Running, body: dict[str, Any], prompt: Any, name: str
) -> None:
    asked = body | {"prompt": prompt}
    with paused(door.llm):
        first = in_background(ask, door, "/v1/completions", asked, x_request_id=name)
        wait_submitted(door, len(prompt) if isinstance(prompt, list) else 1)
        second = in_background(ask, door, "/v1/completions", asked, x_request_id=name)
        wait_submitted(door, 2 * len(prompt) if isinstance(prompt, list) else 2)
    answers = [one.result(TIMEOUT_S) for one in (first, second)]

    assert [answer.status for answer in answers] == [200, 200]
    names = [answer.headers["x-request-id"] for answer in answers]
    assert names[0] == name
    assert names[1] != name and names[1].startswith(name[:119]) and len(names[1]) <= 128
    assert [answer.json["id"] for answer in answers] == [f"cmpl-{one}" for one in names]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_a_call_brings_reaches_its_request(
    door: Running, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    asks: list[Ask] = []
    submit = door.server.dispatcher.open_all

    def opened(caller: Caller, given: Sequence[Ask], **how: Any) -> Any:
        asks.extend(given)
        return submit(caller, given, **how)

    monkeypatch.setattr(door.server.dispatcher, "open_all", opened)
    if path.endswith("chat/completions"):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    before = time.monotonic()
    headers = {"traceparent": "00-1-2-01", "tracestate": "a=b", "x_request_timeout": "20"}
    assert ask(door, path, body | {"priority": -3}, **headers).status == 200
    (one,) = asks

    assert one.priority == -3
    assert one.arrival is not None and before < one.arrival
    assert one.carrier == {"traceparent": "00-1-2-01", "tracestate": "a=b"}
    assert one.deadline == one.arrival + 20
    name = path.removeprefix("/v1/").replace("/", "_")
    assert one.operation == f"http.{name}"


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/completions", "http.completions"),
        ("/v1/chat/completions", "http.chat_completions"),
    ],
)
def test_a_call_refused_while_it_is_read_is_heard_of(
    door: Running, monkeypatch: pytest.MonkeyPatch, path: str, operation: str
) -> None:
    records: list[Record] = []

    class Listener(Observer):
        def on_end(self, record: Record) -> None:
            records.append(record)

    monkeypatch.setattr(door.server.dispatcher, "_audience", Audience([Listener()]))
    assert ask(door, path, {"n": "1"}).status == 400
    (record,) = records

    assert record.operation == operation
    assert isinstance(record.error, RequestError)
    assert record.end is not None and record.arrival < record.end


def test_tokens_without_text_are_told_as_they_come(door: Running, body: dict[str, Any]) -> None:
    """Who measures sees when, though the end token has no text."""
    end = door.llm.get_tokenizer().eos_id
    empty = {"logit_bias": {str(end): 100}, "ignore_eos": True, "max_tokens": 40, "stream": True}
    *events, _ = events_of(ask(door, "/v1/completions", body | empty).text)

    choices = [event["choices"][0] for event in events]
    assert {choice["text"] for choice in choices} == {""}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [
        "length"
    ]
    assert len(choices) > 1
