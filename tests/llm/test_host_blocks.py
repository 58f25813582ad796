"""What preempted sequences had comes back from host memory: the same tokens, less computed."""

from collections.abc import Iterator
from typing import Any

import pytest
from jax.errors import JaxRuntimeError

from distkv_jax.cache.messages import FromHost, Saved
from distkv_jax.engine.engine import EngineStats
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.runner import Runner, step_failures
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from tests.llm.engines import make_llm, mixed_prompts
from tests.llm.test_lives import Compiles

PROMPTS = mixed_prompts(longest=110)
GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
SAMPLED = [
    GREEDY,
    SamplingParams(seed=1, max_tokens=60, ignore_eos=True),
    SamplingParams(seed=2, n=2, presence_penalty=1, max_tokens=60, ignore_eos=True),
    SamplingParams(seed=3, logprobs=2, prompt_logprobs=1, max_tokens=60, ignore_eos=True),
]
KINDS: list[dict[str, Any]] = [
    {"mesh": "cpu-1", "num_blocks": 24},
    {"mesh": "cpu-2", "num_blocks": 12},
    {"mesh": "cpu-2x2", "num_blocks": 12},
    {"mesh": "cpu-2", "num_blocks": 12, "kv_cache_dtype": "int8"},
    {"mesh": "cpu-2", "num_blocks": 12, "kv_cache_dtype": "fp8"},
    {"mesh": "cpu-2", "num_blocks": 24, "pooling": False},
    {"mesh": "cpu-2", "num_blocks": 12, "placement": "random"},
    {"mesh": "cpu-1", "num_blocks": 9, "case": "mistral_window"},
]


def name_of(settings: dict[str, Any]) -> str:
    return " ".join(str(value) for value in settings.values())


def params_of_each() -> list[SamplingParams]:
    return [SAMPLED[index % len(SAMPLED)] for index in range(len(PROMPTS))]


def run(llm: LLM) -> tuple[list[RequestOutput], EngineStats]:
    """Serve all prompts at once; the host's memory is free then."""
    outputs = llm.generate(PROMPTS, params_of_each(), use_tqdm=False)
    view = llm.pool()
    assert all(one.held == 0 for one in (*view.usage, *view.host))
    return outputs, llm.stats()


def check_equal(found: list[RequestOutput], expected: list[RequestOutput]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        assert [sample.token_ids for sample in one.outputs] == [
            sample.token_ids for sample in other.outputs
        ]
        if other.prompt_logprobs is not None:
            assert one.prompt_logprobs is not None
            assert len(one.prompt_logprobs) == len(other.prompt_logprobs)


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_tokens_are_those_without_and_fewer_are_computed(settings: dict[str, Any]) -> None:
    with make_llm(**settings) as llm:
        expected, without = run(llm)
        assert llm.pool().host == []
    with make_llm(**settings, host_blocks=100) as llm:
        compiles = Compiles()
        found, stats = run(llm)
        assert compiles.count == 0

    check_equal(found, expected)
    assert stats.num_preemptions > 0
    assert stats.num_fetched_tokens > 0
    assert stats.num_computed_tokens < without.num_computed_tokens


@pytest.fixture(scope="module")
def expected() -> Iterator[list[RequestOutput]]:
    with make_llm(mesh="cpu-2", num_blocks=12) as llm:
        yield run(llm)[0]


@pytest.mark.parametrize("host_blocks", [1, 8])
def test_a_host_with_little_room_keeps_what_it_can(
    expected: list[RequestOutput], host_blocks: int
) -> None:
    with make_llm(mesh="cpu-2", num_blocks=12, host_blocks=host_blocks) as llm:
        found, stats = run(llm)

    check_equal(found, expected)
    assert (stats.num_fetched_tokens > 0) == (host_blocks == 8)


@pytest.mark.parametrize("what", ["lost", "late", "twice"])
def test_answers_that_are_lost_late_or_doubled_change_nothing(
    expected: list[RequestOutput], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Runner.hear
    late: list[FromHost] = []

    def unreliable(runner: Runner) -> list[FromHost]:
        said = hear(runner)
        if what == "twice":
            return said + said
        answers = [one for one in said if isinstance(one, Saved)]
        late.extend(answers)
        due = [late.pop(0)] if what == "late" and len(late) > 3 else []
        return [one for one in said if one not in answers] + due

    monkeypatch.setattr(Runner, "hear", unreliable)
    with make_llm(mesh="cpu-2", num_blocks=12, host_blocks=100) as llm:
        found, stats = run(llm)

    check_equal(found, expected)
    assert stats.num_preemptions > 0
    assert (stats.num_fetched_tokens == 0) == (what == "lost")


@pytest.mark.parametrize("method", ["_dispatch", "_read", "order", "hear"])
def test_steps_that_fail_lose_what_was_saved_and_no_request(
    expected: list[RequestOutput], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times, whenever something is in host memory."""
    original, failures = getattr(Runner, method), []

    def fail_at_times(runner: Runner, *args: Any) -> Any:
        result = original(runner, *args)
        if len(failures) < 3 and any(pool.saves for pool in runner.host_pools):
            failures.append(method)
            with step_failures():
                raise JaxRuntimeError("INTERNAL: a device burnt down")
        return result

    with make_llm(mesh="cpu-2", num_blocks=12, host_blocks=100) as llm:
        monkeypatch.setattr(Runner, method, fail_at_times)
        found, stats = run(llm)

    check_equal(found, expected)
    assert len(failures) == stats.num_failed_steps == 3
    assert stats.num_fetched_tokens > 0


def test_cancelled_requests_leave_nothing_in_host_memory() -> None:
    with make_llm(mesh="cpu-2", num_blocks=12, host_blocks=100) as llm:
        streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS]
        for stream in streams:
            next(stream)
        while not any(one.held for one in llm.pool().host):
            next(streams[0])
        for stream in streams:
            stream.close()
        # Cancelled between two steps, so that what was saved is still to be forgotten.
        llm.generate([5], SamplingParams(max_tokens=1), use_tqdm=False)

        view = llm.pool()
        assert [one.free for one in view.host] == [100, 100]
        assert all(one.held == 0 for one in view.usage)
