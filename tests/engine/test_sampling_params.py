"""Sampling parameters are vLLM's by name and default; a bad one is refused with what is allowed."""

import copy
import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from distkv_jax.engine.sampling_params import (
    BAD_WORD_FORMS,
    MAX_BAD_WORDS,
    SamplingParams,
    check_vocabulary,
    tokenize_bad_words,
)
from distkv_jax.errors import RequestError

VLLM_DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
}


def test_names_and_defaults_are_vllms():
    assert dataclasses.asdict(SamplingParams()) == VLLM_DEFAULTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n=0 must be an integer within 1..64"),
        ({"n": 65}, "n=65 must be an integer within 1..64"),
        ({"n": True}, "n=True must be an integer within 1..64"),
        ({"n": None}, "n=None must be an integer within 1..64"),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1 must be a finite number within [-2, 2]"),
        ({"frequency_penalty": -3}, "frequency_penalty=-3 must be a finite number within [-2, 2]"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be a finite number above 0"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a finite number at least 0"),
        ({"temperature": math.nan}, "temperature=nan must be a finite number at least 0"),
        ({"temperature": math.inf}, "temperature=inf must be a finite number at least 0"),
        ({"temperature": "hot"}, "temperature='hot' must be a finite number at least 0"),
        ({"top_p": 0}, "top_p=0 must be a finite number within (0, 1]"),
        ({"top_p": 1.5}, "top_p=1.5 must be a finite number within (0, 1]"),
        ({"top_k": -2}, "top_k=-2 must be an integer within -1..2147483647"),
        ({"top_k": 1.5}, "top_k=1.5 must be an integer within -1..2147483647"),
        ({"min_p": 1.1}, "min_p=1.1 must be a finite number within [0, 1]"),
        ({"min_p": -0.1}, "min_p=-0.1 must be a finite number within [0, 1]"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be an integer within -9223372036854775"),
        ({"stop": 5}, "stop=5 must be a list of strings"),
        ({"stop": ""}, "stop=[''] must be non-empty strings"),
        ({"stop": ["a", 1]}, "stop=['a', 1] must be non-empty strings"),
        ({"stop": ["a"] * 17}, "stop has 17 entries, limit 16"),
        ({"stop": "a" * 257}, "stop has a string of 257 characters, limit 256"),
        ({"stop": "a", "detokenize": False}, "stop strings need detokenize=True, given False"),
        ({"stop_token_ids": 5}, "stop_token_ids=5 must be a list of token ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids has -1, must be integers of at least 0"),
        ({"stop_token_ids": range(129)}, "stop_token_ids has 129 entries, limit 128"),
        ({"ignore_eos": 1}, "ignore_eos=1 must be True or False"),
        ({"detokenize": None}, "detokenize=None must be True or False"),
        ({"max_tokens": 0}, "max_tokens=0 must be an integer within 1..2147483647 or None"),
        ({"max_tokens": -4}, "max_tokens=-4 must be an integer within 1..2147483647 or None"),
        ({"min_tokens": -1}, "min_tokens=-1 must be an integer within 0..2147483647"),
        ({"min_tokens": 17}, "min_tokens=17 must be at most max_tokens=16"),
        ({"logprobs": 21}, "logprobs=21 must be an integer within 0..20 or None"),
        ({"logprobs": -1}, "logprobs=-1 must be an integer within 0..20 or None"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 must be an integer within 0..20 or None"),
        ({"logit_bias": [1]}, "logit_bias=[1] must map token ids to numbers"),
        ({"logit_bias": {"1": 0.0}}, "logit_bias has '1', must be integers of at least 0"),
        ({"logit_bias": {1: 101}}, "logit_bias of token 1 is 101, must be within [-100, 100]"),
        ({"logit_bias": {1: 10**400}}, "logit_bias of token 1 is 1000"),
        ({"temperature": 10**400}, "temperature=1000"),
        ({"logit_bias": {1: -math.inf}}, "logit_bias of token 1 is -inf, must be within [-100"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, "logit_bias has 1025 entries, limit 1024"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty, must have at least 1 entry"),
        ({"allowed_token_ids": [0.5]}, "allowed_token_ids has 0.5, must be integers of at least 0"),
        ({"allowed_token_ids": range(65537)}, "allowed_token_ids has 65537 entries, limit 65536"),
        ({"bad_words": "word"}, "bad_words='word' must be a list of strings"),
        ({"bad_words": ["a"] * 33}, "bad_words has 33 entries, limit 32"),
        ({"top_q": 1, "n": 2}, "unknown sampling parameters: top_q; known: n, presence_penalty, "),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_bad_values_are_refused_with_what_is_allowed(given, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        SamplingParams(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"n": 64, "temperature": 0, "top_k": -1, "top_p": 1, "min_p": 1},
        {"seed": -(2**63), "max_tokens": None, "min_tokens": 1000},
        {"seed": 2**64 - 1, "max_tokens": 5, "min_tokens": 5, "logprobs": 0, "prompt_logprobs": 20},
        {"temperature": np.float32(0.5), "top_k": np.int64(3), "stop_token_ids": {1, 2}},
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 0.1},
    ],
)
def test_values_at_the_limits_are_taken(given):
    params = SamplingParams(**given)

    given.pop("stop_token_ids", None)
    assert {name: getattr(params, name) for name in given} == given


def test_numbers_are_kept_as_plain_python():
    given: dict[str, Any] = {"temperature": 1, "top_k": np.int32(3)}
    params = SamplingParams(**given)

    assert type(params.temperature) is float
    assert type(params.top_k) is int


def test_stop_may_be_one_string():
    assert SamplingParams(stop="end").stop_strings == ("end",)
    assert SamplingParams(stop=["a", "b", "a"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


def test_the_callers_containers_are_copied():
    bias = {1: 2}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 4

    assert params.logit_bias == {1: 2.0}


def test_replace_and_copy_check_again_and_keep_the_rest():
    params = SamplingParams(top_k=5, stop="x")

    assert copy.deepcopy(params) == params
    assert dataclasses.replace(params, top_p=0.5).top_k == 5
    with pytest.raises(RequestError, match="top_p=2 must be"):
        dataclasses.replace(params, top_p=2)


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9e-6, True), (1e-5, False)])
def test_a_temperature_next_to_zero_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).is_greedy == greedy


@pytest.mark.parametrize(
    "given",
    [
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"min_tokens": 1},
        {"logit_bias": {3: 1}},
        {"allowed_token_ids": [3]},
        {"bad_words": ["x"]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_changes_logits_needs_a_slot(given):
    assert SamplingParams(**given).adjusts_logits


def test_what_leaves_logits_alone_needs_no_slot():
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, stop_token_ids=[1])

    assert not params.adjusts_logits


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_ids_past_the_vocabulary_are_refused(name):
    ids: Any = {9: 1.0, 10: 1.0} if name == "logit_bias" else [9, 10]
    params = SamplingParams(**{name: ids})

    check_vocabulary(params, 11)
    with pytest.raises(RequestError, match=f"{name} has token id 10, the model has 0..9"):
        check_vocabulary(params, 10)


def test_a_bad_word_is_banned_with_and_without_a_space_before():
    forms = tokenize_bad_words(["cat", " dog"], lambda text: [len(text), *map(ord, text[-2:])])

    assert forms == (
        (3, ord("a"), ord("t")),
        (4, ord("a"), ord("t")),
        (3, ord("o"), ord("g")),
        (4, ord("o"), ord("g")),
    )
    assert len(forms) <= BAD_WORD_FORMS == 2 * MAX_BAD_WORDS


def test_the_spaced_form_is_left_out_when_the_plain_one_catches_it():
    plain = (ord("c"), ord("a"), ord("t"))

    assert tokenize_bad_words(["cat"], lambda text: [*map(ord, text)]) == (plain,)
    assert tokenize_bad_words(["cat"], lambda text: [*map(ord, text.strip())]) == (plain,)


@pytest.mark.parametrize("tokens", [0, 9])
def test_a_bad_word_of_no_or_too_many_tokens_is_refused(tokens):
    with pytest.raises(RequestError, match=f"bad word 'word' has {tokens} tokens, allowed 1..8"):
        tokenize_bad_words(["word"], lambda text: [1] * tokens)
