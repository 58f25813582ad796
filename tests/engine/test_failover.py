"""A step that fails loses its pools and no request: the tokens are those of a run without failures.

Failures are made where the host meets the device: `Runner._dispatch`, `_read`, `_restore`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax.errors import JaxRuntimeError

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.outputs import CompletionOutput, RequestOutput
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import EngineStopped, InvariantError
from distkv_jax.llm import LLM
from pallas_kernels.kv_pool import KVPool
from tests.llm.engines import make_llm, mixed_prompts

PROMPTS = mixed_prompts(4, longest=40)
# Greedy, seeded, seeded samples with penalties, and with everything that is read besides tokens.
PARAMS = [
    SamplingParams(temperature=0, max_tokens=5, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=6, ignore_eos=True),
    SamplingParams(seed=2, n=2, presence_penalty=1, max_tokens=4, ignore_eos=True),
    SamplingParams(seed=3, logprobs=2, prompt_logprobs=1, max_tokens=3, ignore_eos=True),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with make_llm(num_blocks=24) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[list[CompletionOutput]]:
    return [output.outputs for output in run(llm)]


def run(llm: LLM, count: int = len(PROMPTS)) -> list[RequestOutput]:
    return llm.generate(PROMPTS[:count], PARAMS[:count], use_tqdm=False)


def delete_buffers(runner: Runner) -> None:
    """What a device does that fails in the middle of a step."""
    for array in jax.tree.leaves((runner._pools, runner._state)):
        array.delete()


Failure = Callable[[Runner, Callable[[], Any]], Any]
"""Runs instead of a call: gets the runner and the call."""


def before(runner: Runner, call: Callable[[], Any]) -> Any:
    raise JaxRuntimeError("INTERNAL: a device burnt down")


def in_a_collective(runner: Runner, call: Callable[[], Any]) -> Any:
    """What XLA's CPU client raises when a process has gone."""
    delete_buffers(runner)
    raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")


def after(runner: Runner, call: Callable[[], Any]) -> Any:
    call()
    raise JaxRuntimeError("INTERNAL: a device burnt down")


def with_the_pools(runner: Runner, call: Callable[[], Any]) -> Any:
    delete_buffers(runner)
    raise JaxRuntimeError("INTERNAL: a device burnt down")


def silently(runner: Runner, call: Callable[[], Any]) -> Any:
    """The buffers are gone, and only who uses them next is told."""
    delete_buffers(runner)
    return call()


class Fuse:
    """Lets the calls of one method of every runner fail, from the `first` on, `count` times.

    Attributes:
        num_calls: Calls so far.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        method: str,
        failure: Failure,
        *,
        first: int = 1,
        count: int = 1,
    ) -> None:
        self.num_calls = 0
        original = getattr(Runner, method)

        def call(runner: Runner, *args: Any) -> Any:
            self.num_calls += 1
            if first <= self.num_calls < first + count:
                return failure(runner, lambda: original(runner, *args))
            return original(runner, *args)

        patch.setattr(Runner, method, call)


def check_equal(
    found: list[RequestOutput], expected: list[list[CompletionOutput]], at: object
) -> None:
    for output, samples in zip(found, expected[: len(found)], strict=True):
        for one, other in zip(output.outputs, samples, strict=True):
            assert one.token_ids == other.token_ids, at
            assert one.finish_reason == "length"
            # Recomputed with other chunks, so equal only as far as float32 goes.
            assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-3)
        assert output.error is None


@pytest.mark.parametrize(
    ("method", "failure"),
    [
        ("_dispatch", before),
        ("_dispatch", after),
        ("_dispatch", with_the_pools),
        ("_dispatch", silently),
        ("_read", before),
        ("_read", with_the_pools),
        ("_read", in_a_collective),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_call_that_fails_in_turn_loses_nothing(
    llm: LLM,
    expected: list[list[CompletionOutput]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    failure: Failure,
) -> None:
    first = 0
    while True:
        first += 1
        num_failed = llm.stats().num_failed_steps
        with monkeypatch.context() as patch:
            fuse = Fuse(patch, method, failure, first=first)
            found = run(llm)

        check_equal(found, expected, first)
        if fuse.num_calls < first:
            break
        assert llm.stats().num_failed_steps == num_failed + 1
        assert all(usage.held == 0 for usage in llm.pool().usage)
    assert first > 5


def test_prompt_logprobs_are_whole_after_a_failure_in_the_prompt(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = mixed_prompts(6, longest=100)[5]
    params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1)
    (expected,) = llm.generate(prompt, params, use_tqdm=False)
    Fuse(monkeypatch, "_read", before, first=3)

    (found,) = llm.generate(prompt, params, use_tqdm=False)

    assert found.prompt_logprobs is not None and expected.prompt_logprobs is not None
    assert len(found.prompt_logprobs) == 100
    for one, other in zip(found.prompt_logprobs[1:], expected.prompt_logprobs[1:], strict=True):
        assert one is not None and other is not None
        assert [entry.logprob for entry in one.values()] == pytest.approx(
            [entry.logprob for entry in other.values()], abs=1e-3
        )


@pytest.mark.parametrize("count", [2, 4])
def test_pools_that_cannot_be_made_at_once_are_made_later(
    llm: LLM, expected: list[list[CompletionOutput]], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Where nothing but the step needs them, and where slots are set before."""
    refusals = ["once", "twice"]

    def no_memory(runner: Runner, call: Callable[[], Any]) -> Any:
        if runner._is_lost and refusals:
            refusals.pop()
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call()

    num_failed = llm.stats().num_failed_steps
    with monkeypatch.context() as patch:
        Fuse(patch, "_read", before, first=3)
        Fuse(patch, "_restore", no_memory, count=10**9)
        found = run(llm, count)

    check_equal(found, expected, "no memory")
    assert not refusals
    assert llm.stats().num_failed_steps == num_failed + 3


def test_old_pools_are_gone_before_new_ones_are_made(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm._thread.call(lambda engine: engine.runner)
    was_deleted = []
    make = runner._make_pool

    def make_pool() -> KVPool:
        was_deleted.append(all(pool.data.is_deleted() for pool in runner._pools))
        return make()

    monkeypatch.setattr(runner, "_make_pool", make_pool)
    Fuse(monkeypatch, "_read", before, first=2)
    run(llm)

    assert was_deleted and all(was_deleted)


def test_a_slot_that_cannot_be_set_is_a_failed_step(
    llm: LLM, expected: list[list[CompletionOutput]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm._thread.call(lambda engine: engine.runner)
    fill, calls = runner._fill_slot, []

    def fill_slot(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise JaxRuntimeError("INTERNAL: a device burnt down")
        return fill(*args)

    monkeypatch.setattr(runner, "_fill_slot", fill_slot)

    check_equal(run(llm), expected, "set_slot")
    assert len(calls) > 1


@pytest.mark.parametrize("method", ["_dispatch", "_read", "_restore"])
def test_steps_that_fail_for_ever_end_every_request_with_the_cause(
    llm: LLM,
    expected: list[list[CompletionOutput]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    with monkeypatch.context() as patch:
        Fuse(patch, method, before, count=10**9)
        outputs = run(llm)

    for output in outputs:
        assert output.finished
        assert output.error == "steps kept failing: INTERNAL: a device burnt down"
        assert {sample.finish_reason for sample in output.outputs} == {"error"}
    assert all(usage.held == 0 for usage in llm.pool().usage)
    check_equal(run(llm), expected, "after the failures")


def test_a_broken_promise_ends_every_live_request_and_stops_serving() -> None:
    llm = make_llm(mesh="cpu-1", warm_up=False, max_num_seqs=2)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    streams = [llm.stream([token], params) for token in (5, 6)]
    for stream in streams:
        next(stream)

    def corrupt(engine: Engine) -> None:
        sequence = engine._scheduler.running[0]
        engine.coordinator.close(sequence.key)

    llm._thread.call(corrupt)

    for stream in streams:
        *_, output = stream
        assert output.finished
        assert [sample.finish_reason for sample in output.outputs] == ["error"]
        assert output.error is not None
        assert output.error.startswith("the engine failed: sequence ")
    with pytest.raises(EngineStopped, match="takes no requests: it failed: sequence .* not open"):
        llm.generate([5], use_tqdm=False)
    with pytest.raises(InvariantError, match="is not open"):
        llm.close()
    llm.close()


def test_a_leak_found_when_idle_ends_the_last_request_with_it() -> None:
    llm = make_llm(mesh="cpu-1", warm_up=False, max_num_seqs=2)
    llm.generate([5], use_tqdm=False)
    llm._thread.call(lambda engine: engine.coordinator.open(("leak", 0), "leak", 0))

    (output,) = llm.generate([5], use_tqdm=False)

    assert output.outputs[0].finish_reason == "error"
    assert output.error is not None and "idle with 1 open sequences" in output.error
    with pytest.raises(InvariantError, match="idle with 1 open sequences"):
        llm.close()
