"""`LLM.generate` does what each parameter says, alone, batched and after a preemption."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distkv_jax.engine.outputs import CompletionOutput, RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from tests.llm.engines import GOLDEN, make_llm, mixed_prompts
from tests.llm.text_checkpoint import EOS, MAX_TOKENS, TEXTS, ids_of, text_of, write_text_checkpoint

PROMPT = "Once upon a time"
BATCH = mixed_prompts(7, longest=60, seed=3)
"""Together with 40 tokens each, more than the pool holds."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_text_checkpoint(tmp_path_factory.mktemp("model"))
    with make_llm(str(folder), num_blocks=16) as llm:
        yield llm


def run(llm: LLM, prompt: Any = PROMPT, **params: Any) -> CompletionOutput:
    """Generate for one prompt, greedily unless told otherwise."""
    return run_request(llm, prompt, **params).outputs[0]


def run_request(llm: LLM, prompt: Any = PROMPT, **params: Any) -> RequestOutput:
    settings: dict[str, Any] = dict(temperature=0, max_tokens=12, ignore_eos=True)
    (output,) = llm.generate(prompt, SamplingParams(**(settings | params)), use_tqdm=False)
    return output


def run_batch(llm: LLM, params: SamplingParams | list[SamplingParams]) -> list[RequestOutput]:
    """Generate for `BATCH`, which forces preemptions."""
    before = llm.stats().num_preemptions
    outputs = llm.generate(BATCH, params, use_tqdm=False)

    assert llm.stats().num_preemptions > before
    return outputs


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        [PROMPT],
        ids_of(PROMPT),
        [ids_of(PROMPT)],
        {"prompt": PROMPT},
        {"prompt_token_ids": ids_of(PROMPT)},
        [{"prompt_token_ids": ids_of(PROMPT)}],
        np.array(ids_of(PROMPT)),
    ],
    ids=lambda prompt: f"{type(prompt).__name__}-{str(prompt)[:3]}",
)
def test_every_form_of_a_prompt_is_the_same_prompt(llm: LLM, prompt: Any) -> None:
    output = run_request(llm, prompt)

    assert output.prompt_token_ids == ids_of(PROMPT)
    assert output.prompt == (PROMPT if "Once" in str(prompt) else None)
    assert output.outputs[0].token_ids == run(llm).token_ids
    assert output.finished and output.error is None
    metrics = output.metrics
    assert metrics.first_token_time is not None and metrics.finished_time is not None
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=count, ignore_eos=True) for count in (20, 1, 9, 3, 14, 2, 6)
    ]
    outputs = llm.generate(BATCH, params, use_tqdm=False)

    assert [output.prompt_token_ids for output in outputs] == [
        prompt["prompt_token_ids"] for prompt in BATCH
    ]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [
        one.max_tokens for one in params
    ]
    finished = [output.metrics.finished_time or 0 for output in outputs]
    assert sorted(finished) != finished


def test_one_params_is_for_all_prompts_and_none_is_what_the_checkpoint_recommends(
    llm: LLM,
) -> None:
    one = SamplingParams(max_tokens=2, ignore_eos=True)

    for output in llm.generate(["ab", "c"], one, use_tqdm=False):
        assert len(output.outputs[0].token_ids) == 2
    assert llm.get_default_sampling_params() == SamplingParams(max_tokens=MAX_TOKENS)
    for output in llm.generate(["ab", "c"], use_tqdm=False):
        assert len(output.outputs[0].token_ids) == MAX_TOKENS


def test_no_prompts_have_no_outputs(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


def test_samples_differ_and_compute_the_shared_prompt_once(llm: LLM) -> None:
    prompt, n, max_tokens = [9] * 65, 4, 8
    before = llm.stats().num_computed_tokens
    most_held = 0
    params = SamplingParams(n=n, seed=5, max_tokens=max_tokens, ignore_eos=True)
    outputs = []
    for output in llm.stream(prompt, params):
        outputs.append(output)
        if max(len(one.token_ids) for one in output.outputs) < max_tokens:
            most_held = max(most_held, sum(usage.held for usage in llm.pool().usage))

    assert outputs[-1].num_cached_tokens == 64
    samples = outputs[-1].outputs
    assert [one.index for one in samples] == list(range(n))
    assert len({tuple(one.token_ids) for one in samples}) == n
    # 64 tokens are 8 full blocks; the last prompt token, and the output, are each sample's own.
    assert llm.stats().num_computed_tokens - before == 64 + n + n * (max_tokens - 1)
    assert 8 < most_held <= 8 + n


def test_a_seed_gives_the_same_tokens_alone_batched_and_for_more_samples(llm: LLM) -> None:
    params = SamplingParams(seed=11, max_tokens=40, ignore_eos=True)
    alone = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in BATCH[:3]]
    batched = run_batch(llm, params)
    many = run_request(llm, BATCH[0], temperature=1, n=3, seed=11, max_tokens=40)

    for one, other in zip(alone, batched, strict=False):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
    assert many.outputs[0].token_ids == alone[0].outputs[0].token_ids
    assert many.outputs[1].token_ids != many.outputs[2].token_ids


def test_without_a_seed_every_request_draws_anew(llm: LLM) -> None:
    tokens = {tuple(run(llm, temperature=1).token_ids) for _ in range(3)}

    assert len(tokens) == 3


@pytest.mark.parametrize("count", [0, 3])
def test_logprobs_hold_the_chosen_token_and_the_most_likely(llm: LLM, count: int) -> None:
    sample = run(llm, temperature=1, seed=0, logprobs=count, max_tokens=30)

    assert sample.logprobs is not None
    assert len(sample.logprobs) == len(sample.token_ids)
    for token, entry in zip(sample.token_ids, sample.logprobs, strict=True):
        ranks = [one.rank for one in entry.values()]
        assert ranks == sorted({*range(1, count + 1), entry[token].rank})
        logprobs = [one.logprob for one in entry.values()]
        assert logprobs == sorted(logprobs, reverse=True)
        assert [one.decoded_token for one in entry.values()] == [TEXTS[id_] for id_ in entry]
    chosen = [entry[token] for token, entry in zip(sample.token_ids, sample.logprobs, strict=True)]
    assert sample.cumulative_logprob == pytest.approx(sum(one.logprob for one in chosen))
    assert any(one.rank > 3 for one in chosen)


def test_logprobs_are_none_unless_asked_for(llm: LLM) -> None:
    output = run_request(llm)

    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None
    assert output.prompt_logprobs is None


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:6]])
def test_prompt_logprobs_begin_with_none_and_come_once_for_all_samples(
    llm: LLM, prompt: str
) -> None:
    output = run_request(llm, prompt, n=2, temperature=1, prompt_logprobs=2, logprobs=1)
    alone = run(llm, prompt[:-1], logprobs=2, max_tokens=1)

    assert output.prompt_logprobs is not None and alone.logprobs is not None
    first, *others = output.prompt_logprobs
    assert first is None
    assert len(others) == len(prompt) - 1
    for token, entry in zip(ids_of(prompt)[1:], others, strict=True):
        assert entry is not None
        assert sorted({1, 2, entry[token].rank}) == [one.rank for one in entry.values()]
        assert entry[token].decoded_token == TEXTS[token]
    # What scores the last prompt token is what would be sampled from without it.
    last = others[-1]
    assert last is not None
    best = {token: one.logprob for token, one in last.items() if one.rank <= 2}
    expected = {token: one.logprob for token, one in alone.logprobs[0].items()}
    assert best == pytest.approx(expected, abs=1e-4)


def test_a_stop_string_across_tokens_ends_the_text_before_it(llm: LLM) -> None:
    whole = run(llm, max_tokens=24)
    stop = whole.text[6:9]
    at = whole.text.index(stop)

    sample = run(llm, max_tokens=24, stop=["~never~", stop])
    kept = run(llm, max_tokens=24, stop=stop, include_stop_str_in_output=True)

    assert len(set(stop)) > 1
    assert (sample.text, sample.finish_reason, sample.stop_reason) == (
        whole.text[:at],
        "stop",
        stop,
    )
    assert kept.text == whole.text[:at] + stop
    assert sample.token_ids == kept.token_ids == whole.token_ids[: len(sample.token_ids)]
    assert text_of(sample.token_ids).startswith(kept.text)
    assert len(sample.token_ids) < len(whole.token_ids)


def test_text_that_only_begins_like_a_stop_string_is_given_in_the_end(llm: LLM) -> None:
    whole = run(llm)

    sample = run(llm, stop=whole.text[-2:] + "~")

    assert (sample.text, sample.finish_reason, sample.stop_reason) == (whole.text, "length", None)


def test_a_stop_token_ends_the_output_and_is_in_it(llm: LLM) -> None:
    whole = run(llm)
    token = whole.token_ids[4]
    count = whole.token_ids.index(token) + 1

    sample = run(llm, stop_token_ids=[token])
    kept = run(llm, stop_token_ids=[token], include_stop_str_in_output=True)

    assert sample.token_ids == kept.token_ids == whole.token_ids[:count]
    assert (sample.finish_reason, sample.stop_reason) == ("stop", token)
    assert sample.text == text_of(sample.token_ids[:-1])
    assert kept.text == text_of(kept.token_ids)


def test_an_end_token_ends_the_output_and_is_no_text(llm: LLM) -> None:
    bias = {EOS: 100.0}
    shown = dict(skip_special_tokens=False, ignore_eos=False, logit_bias=bias)
    sample = run(llm, ignore_eos=False, logit_bias=bias)

    assert (sample.token_ids, sample.text) == ([EOS], "")
    assert (sample.finish_reason, sample.stop_reason) == ("stop", None)
    assert run(llm, **shown).text == ""
    assert run(llm, **shown, include_stop_str_in_output=True).text == TEXTS[EOS]


def test_ignore_eos_goes_on_and_special_tokens_are_text_only_where_asked(llm: LLM) -> None:
    bias = {EOS: 100.0}
    sample = run(llm, logit_bias=bias, max_tokens=3)

    assert (sample.token_ids, sample.text) == ([EOS] * 3, "")
    assert (sample.finish_reason, sample.stop_reason) == ("length", None)
    shown = run(llm, logit_bias=bias, max_tokens=3, skip_special_tokens=False)
    assert shown.text == TEXTS[EOS] * 3


def test_min_tokens_come_before_an_end_token_a_stop_token_or_a_stop_string(llm: LLM) -> None:
    bias = {EOS: 100.0}
    sample = run(llm, ignore_eos=False, logit_bias=bias, min_tokens=4)

    assert sample.token_ids.index(EOS) == 4
    assert sample.finish_reason == "stop"
    token = ids_of("q")[0]
    sample = run(llm, stop_token_ids=[token], logit_bias={token: 100.0}, min_tokens=3)
    assert sample.token_ids.index(token) == 3
    sample = run(llm, stop="q", logit_bias={token: 100.0}, min_tokens=3)
    assert (sample.text, len(sample.token_ids)) == ("qq", 3)


def test_without_max_tokens_the_output_goes_to_the_models_limit(llm: LLM) -> None:
    sample = run(llm, [9] * 230, max_tokens=None)

    assert len(sample.token_ids) == llm.max_model_len - 230 == 26
    assert sample.finish_reason == "length"


def test_without_detokenization_there_are_tokens_and_no_text(llm: LLM) -> None:
    sample = run(llm, detokenize=False)

    assert sample.text == ""
    assert sample.token_ids == run(llm).token_ids


ADJUSTED: dict[str, dict[str, Any]] = {
    "repetition": dict(repetition_penalty=3.0),
    "frequency": dict(frequency_penalty=2.0),
    "presence": dict(presence_penalty=2.0),
    "bias": dict(logit_bias={7: 3.0, 8: 3.0}, frequency_penalty=0.5),
    "allowed": dict(allowed_token_ids=list(range(40, 60))),
    "bad words": dict(bad_words=["q", "ab"]),
    "min tokens": dict(logit_bias={EOS: 100.0}, ignore_eos=False, min_tokens=38),
}


@pytest.mark.parametrize("names", [list(ADJUSTED), list(ADJUSTED)[::-1]], ids=["to", "fro"])
def test_parameters_have_the_same_effect_alone_and_after_a_preemption(
    llm: LLM, names: list[str]
) -> None:
    """In both orders, since only the latest arrivals are preempted."""
    settings: dict[str, Any] = dict(temperature=0, max_tokens=40, ignore_eos=True)
    params = [SamplingParams(**(settings | ADJUSTED[name])) for name in names]

    outputs = run_batch(llm, params)

    found = {name: output.outputs[0].token_ids for name, output in zip(names, outputs, strict=True)}
    for name, prompt in zip(names, BATCH, strict=True):
        assert found[name] == run(llm, prompt, **({"max_tokens": 40} | ADJUSTED[name])).token_ids
        if name != "bad words":
            assert found[name] != run(llm, prompt, max_tokens=40).token_ids
    assert set(found["allowed"]) <= set(range(40, 60))
    assert found["min tokens"].index(EOS) == 38


def test_bad_words_are_not_said_also_after_a_preemption(llm: LLM) -> None:
    plain = run_batch(llm, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    texts = [output.outputs[0].text for output in plain]
    words = [text[30:32] for text in texts]
    params = [
        SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, bad_words=[word])
        for word in words
    ]

    for text, word, output in zip(texts, words, run_batch(llm, params), strict=True):
        assert word in text
        said = output.outputs[0].token_ids
        banned = ids_of(word)
        assert all(said[at : at + 2] != banned for at in range(len(said)))


@pytest.fixture(scope="module")
def window_llm() -> Iterator[LLM]:
    """A window of 16 tokens, and a pool of 6 blocks of 8."""
    with make_llm("mistral_window", mesh="cpu-1", num_blocks=6, max_num_seqs=4) as llm:
        yield llm


def test_blocks_leave_the_window_and_longer_requests_than_the_pool_are_served(
    window_llm: LLM,
) -> None:
    with np.load(GOLDEN / "mistral_window.npz") as golden:
        prompt, expected = golden["prompt_2"].tolist(), golden["greedy_2"].tolist()
    params = SamplingParams(temperature=0, max_tokens=len(expected), ignore_eos=True)
    held, tokens = [], []
    for output in window_llm.stream(prompt, params):
        tokens = output.outputs[0].token_ids
        if not output.finished:
            held.append(window_llm.pool().usage[0].held)

    assert len(prompt) + len(expected) > window_llm.capacity.mesh_tokens
    assert tokens == expected
    # Two blocks that the window covers in part, what lies between, and the one being filled.
    assert 0 < max(held) <= 4
    assert window_llm.pool().usage[0].held == 0


def test_two_windows_share_a_pool_that_holds_neither_prompt(window_llm: LLM) -> None:
    prompts = [{"prompt_token_ids": [5 + at % 100 for at in range(90)]} for _ in range(3)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    alone = window_llm.generate(prompts[0], params, use_tqdm=False)[0].outputs[0].token_ids

    outputs = window_llm.generate(prompts, params, use_tqdm=False)

    assert [output.outputs[0].token_ids for output in outputs] == [alone] * 3
