"""A prompt in each of its forms is the same tokens; anything else is refused by what it is."""

import re
from typing import Any

import numpy as np
import pytest

from distkv_jax.engine.prompt import Parsed, is_single, parse_prompt
from distkv_jax.errors import RequestError
from tests.engine.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = tuple(TOKENIZER.encode("ab"))


@pytest.mark.parametrize("prompt", ["ab", {"prompt": "ab"}])
def test_text_keeps_its_text(prompt: Any) -> None:
    assert parse_prompt(prompt, TOKENIZER) == Parsed("ab", IDS)


@pytest.mark.parametrize(
    "given", [list(IDS), IDS, np.array(IDS), [np.int32(one) for one in IDS]], ids=repr
)
def test_token_ids_may_be_in_any_kind_of_list(given: Any) -> None:
    for prompt in (given, {"prompt_token_ids": given}):
        parsed = parse_prompt(prompt, None)

        assert parsed == Parsed(None, IDS)
        assert all(type(token) is int for token in parsed.token_ids)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty, must have at least 1 character"),
        ([], "prompt is empty, must have at least 1 token"),
        ({"prompt": ""}, "prompt is empty, must have at least 1 character"),
        ({"prompt_token_ids": []}, "prompt is empty, must have at least 1 token"),
        (b"ab", "prompt is a bytes, expected text, a list of token ids, {'prompt': text} or"),
        (None, "prompt is a NoneType, expected text, a list of token ids"),
        (5, "prompt is a int, expected text, a list of token ids"),
        ([1, "a"], "prompt is a list, expected text, a list of token ids"),
        ([1, True], "prompt is a list, expected text, a list of token ids"),
        ([1.0], "prompt is a list, expected text, a list of token ids"),
        (np.zeros((2, 2), int), "prompt is a ndarray, expected text, a list of token ids"),
        (
            {"promt": "ab"},
            "prompt has keys ['promt'], expected one of prompt, prompt_token_ids",
        ),
        (
            {"prompt": "ab", "prompt_token_ids": [1]},
            "prompt has keys ['prompt', 'prompt_token_ids'], expected one of prompt, prompt_tok",
        ),
        ({}, "prompt has keys [], expected one of prompt, prompt_token_ids"),
        (
            {"prompt": [1]},
            "prompt is a list, expected text in prompt, token ids in prompt_token_ids",
        ),
        (
            {"prompt_token_ids": "ab"},
            "prompt_token_ids is a str, expected text in prompt, token ids in prompt_token_ids",
        ),
        (
            {"prompt_token_ids": {"prompt": "ab"}},
            "prompt_token_ids is a dict, expected text in prompt, token ids in",
        ),
    ],
)
def test_anything_else_is_refused_by_what_it_is(prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        parse_prompt(prompt, TOKENIZER)


def test_text_without_a_tokenizer_says_what_is_missing() -> None:
    message = "the checkpoint has no tokenizer.json: send token ids, or add tokenizer.json to it"

    with pytest.raises(RequestError, match=message):
        parse_prompt("ab", None)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("ab", True),
        ([1, 2], True),
        ((1, 2), True),
        (np.array([1, 2]), True),
        ({"prompt": "ab"}, True),
        # Not prompts at all; taken as one, they are refused by what they are.
        (b"ab", True),
        (None, True),
        ([], False),
        (["ab"], False),
        ([[1, 2]], False),
        ([np.array([1, 2])], False),
        (np.array([[1, 2]]), False),
        (iter(["ab"]), False),
    ],
)
def test_one_prompt_is_told_from_a_list_of_them(prompts: Any, expected: bool) -> None:
    assert is_single(prompts) == expected
