"""A request that goes on from what it gave in an engine before gives what is left, and no other."""

import dataclasses
import queue
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Known, Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import QueueFull, RequestError
from distkv_jax.llm import LLM
from tests.llm.text_checkpoint import EOS, write_text_checkpoint

PROMPT = tuple(range(40, 60))
CASES: dict[str, dict[str, Any]] = {
    "greedy": dict(temperature=0, max_tokens=12, ignore_eos=True),
    "seeded": dict(seed=5, max_tokens=12, ignore_eos=True),
    "samples": dict(seed=6, n=2, max_tokens=9, ignore_eos=True),
    # Greedy, and strong: without what was given before, the same tokens would come again.
    "penalties": dict(
        temperature=0,
        max_tokens=14,
        ignore_eos=True,
        presence_penalty=2,
        frequency_penalty=2,
        repetition_penalty=1.5,
    ),
    "logprobs": dict(seed=8, max_tokens=8, ignore_eos=True, logprobs=2, prompt_logprobs=1),
    "banned ends": dict(seed=9, max_tokens=12, min_tokens=9, logit_bias={EOS: 4.0}),
    "bad words": dict(seed=10, max_tokens=10, ignore_eos=True, bad_words=["e", "th", "qu"]),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_text_checkpoint(tmp_path_factory.mktemp("model"))
    with LLM(
        folder,
        mesh="cpu-2",
        dtype="float32",
        block_size=8,
        num_blocks=48,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        max_num_queued_reqs=2,
        planner=False,
    ) as llm:
        yield llm


class Given(NamedTuple):
    """All that a sample gave."""

    token_ids: list[int]
    text: str
    logprobs: list[Any]
    ends: list[tuple[str, Any]]


def run(llm: LLM, request: Request) -> list[Update]:
    """Serve a request, giving its updates."""
    groups: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
    llm.thread.submit([request], groups.put)
    updates: list[Update] = []
    open_samples = set(request.open_samples)
    while open_samples:
        for update in groups.get(timeout=60):
            updates.append(update)
            if update.finish_reason is not None:
                open_samples.remove(update.index)
    return updates


def gather(updates: list[Update], index: int) -> Given:
    mine = [update for update in updates if update.index == index]
    return Given(
        [token for update in mine for token in update.token_ids],
        "".join(update.text for update in mine),
        [position for update in mine for position in update.logprobs],
        [(one.finish_reason, one.stop_reason) for one in mine if one.finish_reason is not None],
    )


def after(updates: list[Update], index: int, offset: int) -> Given:
    """What a sample gave from its token `offset` on."""
    mine = [update for update in updates if update.index == index]
    return gather(mine[offset:], index)


def known_at(updates: list[Update], n: int, count: int) -> tuple[Known, ...]:
    """What the samples had when `count` updates had been given."""
    seen = [gather(updates[:count], index) for index in range(n)]
    return tuple(Known(tuple(one.token_ids), bool(one.ends)) for one in seen)


def check_resumed(llm: LLM, request: Request, updates: list[Update], count: int) -> None:
    known = known_at(updates, request.params.n, count)
    found = run(llm, dataclasses.replace(request, resumed=known))
    for index, one in enumerate(known):
        have, want = gather(found, index), after(updates, index, len(one.token_ids))
        assert have._replace(logprobs=[]) == want._replace(logprobs=[]), count
        for mine, other in zip(have.logprobs, want.logprobs, strict=True):
            assert mine.keys() == other.keys()
            for token in mine:
                # Recomputed with other chunks, so equal only as far as float32 goes.
                assert mine[token].logprob == pytest.approx(other[token].logprob, abs=1e-3)
    # The prompt is scored again only by who has not told of it.
    told = [update for update in found if update.prompt_logprobs is not None]
    assert bool(told) == (request.params.prompt_logprobs is not None and not known[0].token_ids)


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_as_if_nothing_had_happened(llm: LLM, case: str) -> None:
    params = SamplingParams(**CASES[case])
    request = Request(request_id=f"r-{case}", prompt_token_ids=PROMPT, params=params)
    updates = run(llm, request)

    for count in (0, 1, len(updates) // 2, len(updates) - 1):
        check_resumed(llm, request, updates, count)


def test_a_stop_string_is_found_across_the_cut(llm: LLM) -> None:
    plain = SamplingParams(seed=5, max_tokens=14, ignore_eos=True)
    request = Request(request_id="r-plain", prompt_token_ids=PROMPT, params=plain)
    text = gather(run(llm, request), 0).text
    # Three characters that end in the middle, so that some are held back at every cut before.
    stop = text[6:9]
    params = dataclasses.replace(plain, stop=[stop])
    stopping = Request(request_id="r-stop", prompt_token_ids=PROMPT, params=params)
    updates = run(llm, stopping)
    assert gather(updates, 0).text == text[: text.find(stop)]
    assert updates[-1].stop_reason == stop

    for count in range(len(updates)):
        check_resumed(llm, stopping, updates, count)


def test_a_sample_that_has_ended_is_not_run_again(llm: LLM) -> None:
    params = SamplingParams(seed=3, n=2, max_tokens=3, ignore_eos=True)
    known = (Known((5, 6, 7), has_ended=True), Known())
    request = Request(request_id="r", prompt_token_ids=PROMPT, params=params, resumed=known)

    assert {update.index for update in run(llm, request)} == {1}


def test_what_was_accepted_once_is_not_refused_by_the_queue(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=2, ignore_eos=True)
    new = [Request(request_id=f"r-{at}", prompt_token_ids=PROMPT, params=params) for at in range(5)]
    with pytest.raises(QueueFull):
        llm.thread.submit(new, lambda group: None)

    groups: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
    again = [dataclasses.replace(one, resumed=(Known(),)) for one in new]
    llm.thread.submit(again, groups.put)
    ended: set[str] = set()
    while len(ended) < 5:
        ended |= {one.request.request_id for one in groups.get(timeout=60) if one.finish_reason}


@pytest.mark.parametrize(
    ("resumed", "error"),
    [
        ((Known((5,)), Known()), "resumed has 2 samples, n=1"),
        ((Known((5,), has_ended=True),), "resumed has 1 samples, all of which have ended"),
        ((Known((500,)),), "resumed sample 0 has token id 500, the model has 0..127"),
        ((Known((5, 6, 7)),), "resumed sample 0 has 3 tokens and has not ended, limit 3"),
    ],
)
def test_what_no_engine_gave_is_refused(llm: LLM, resumed: tuple[Known, ...], error: str) -> None:
    params = SamplingParams(max_tokens=3)
    request = Request(request_id="r", prompt_token_ids=PROMPT, params=params, resumed=resumed)

    with pytest.raises(RequestError, match=error):
        llm.thread.submit([request], lambda group: None)
