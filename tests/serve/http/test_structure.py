"""A body of more parts than could be right is refused before it is parsed."""

import itertools
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

import serve.http.structure
from serve.http.structure import (
    MAX_PARTS,
    MOST_PROMPT_IDS,
    OTHER_VALUES,
    Counts,
    counted,
    most_values,
)
from tests.serve.http.asking import ask
from tests.serve.running import Running

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXTS = ("", "a,b", '"', "\\", '\\"', "[{,}]", "\\\\", 'x\\"', "\u00e4\n", '","')


def a_value(choice: random.Random, depth: int) -> Any:
    kind = choice.randrange(5 if depth else 3)
    if kind < 3:
        return (choice.choice(TEXTS), choice.randrange(999), None)[kind]
    inner = [a_value(choice, depth - 1) for _ in range(choice.randrange(4))]
    return inner if kind == 3 else {choice.choice(TEXTS) + str(i): x for i, x in enumerate(inner)}


def counts_of(value: Any) -> Counts:
    """Count as a parser does."""
    if not isinstance(value, list | dict):
        return Counts(int(isinstance(value, str)), 0)
    inner = [counts_of(one) for one in (value.values() if isinstance(value, dict) else value)]
    names = len(value) if isinstance(value, dict) else 0
    return Counts(
        1 + names + sum(one.num_parts for one in inner),
        max(len(value) - 1, 0) + sum(one.num_commas for one in inner),
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**20])
def test_parts_are_counted_as_a_parser_finds_them(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(serve.http.structure, "CHUNK", chunk)
    choice = random.Random(5)
    for _ in range(300):
        value = a_value(choice, depth=3)
        body = json.dumps(value, ensure_ascii=choice.random() < 0.5).encode()
        assert counted(body) == counts_of(value), body


def test_what_is_no_json_is_counted_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.http.structure, "CHUNK", 3)
    for body in map(bytes, itertools.product(b'"\\,[', repeat=6)):
        assert counted(body).num_commas <= 6


@pytest.mark.parametrize(
    ("path", "body", "given"),
    [
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 4000}, "20003 strings, names,"),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 70_000}]}, "70008 strings, names,"),
        (COMPLETIONS, {"prompt": [[]] * 70_000}, "70003 strings, names, lists and objects, limit "),
        (COMPLETIONS, {f"field{number}": 1 for number in range(20_000)}, "20001 strings, names,"),
        (COMPLETIONS, {"prompt": [5] * 200_000}, "199999 values, limit 131472"),
    ],
    ids=["messages", "parts of a message", "lists", "fields", "token ids"],
)
def test_more_parts_than_could_be_right_are_413(
    door: Running, path: str, body: dict[str, Any], given: str
) -> None:
    answer = ask(door, path, body)

    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.error["message"].startswith(f"the body has {given}")


@pytest.mark.parametrize(
    "prompt",
    ['a, "b", [c], {d}\\' * 20_000, [5] * (OTHER_VALUES + 200), [[7] * 1000] * 100],
    ids=["text", "token ids", "several"],
)
def test_what_is_within_bounds_is_judged_by_the_model(door: Running, prompt: Any) -> None:
    assert len(prompt) > MAX_PARTS or isinstance(prompt[0], list)
    answer = ask(door, COMPLETIONS, {"prompt": prompt})

    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("queued", "length", "ids"),
    [
        (None, 100, 256 * 100),
        (None, 4096, MOST_PROMPT_IDS),
        (70_000, 4096, 70_000),
        (70_000, 131_072, 131_072),
        (None, 2**20, 2**20),
    ],
)
def test_as_many_token_ids_are_taken_as_may_wait(queued: int | None, length: int, ids: int) -> None:
    """Up to what a parser takes in one go, and a longest prompt always."""
    llm: Any = SimpleNamespace(
        max_model_len=length, config=SimpleNamespace(max_num_queued_tokens=queued)
    )

    assert most_values(llm) == OTHER_VALUES + ids


def test_what_a_body_may_have_is_said(door: Running) -> None:
    description = ask(door, "/openapi.json").json["info"]["description"]

    assert f"at most {MAX_PARTS} strings" in description
    assert f"{most_values(door.llm)} other values" in description
