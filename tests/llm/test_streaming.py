"""Streams give what `generate` gives, and whoever goes away gives back what was held."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import EngineStopped, RequestError
from distkv_jax.llm import LLM
from distkv_jax.models.tokenizer import Tokenizer
from tests.llm.engines import GOLDEN, make_llm, mixed_prompts
from tests.llm.text_checkpoint import ids_of, write_text_checkpoint

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=230, ignore_eos=True)
"""Still running whenever a test looks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with make_llm(str(folder), num_blocks=16) as llm:
        yield llm


def num_held(llm: LLM) -> int:
    return sum(usage.held for usage in llm.pool().usage)


def generate(llm: LLM, prompt: Any, params: SamplingParams = GREEDY) -> RequestOutput:
    return llm.generate([prompt], params, use_tqdm=False)[0]


def test_a_stream_grows_into_what_generate_gives(llm: LLM) -> None:
    params = SamplingParams(seed=3, n=2, max_tokens=12, ignore_eos=True, logprobs=1)

    outputs = list(llm.stream(PROMPT, params))

    expected = generate(llm, PROMPT, params)
    assert outputs[-1].outputs == expected.outputs
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    for sample in range(2):
        texts = [output.outputs[sample].text for output in outputs]
        assert all(
            after.startswith(before) for before, after in zip(texts, texts[1:], strict=False)
        )
        assert len(set(texts)) > 6


def test_closing_a_stream_early_gives_its_blocks_back(llm: LLM) -> None:
    stream = llm.stream(PROMPT, LONG)
    next(stream)
    assert num_held(llm) > 0

    stream.close()

    # Between two steps, behind the cancel.
    assert num_held(llm) == 0


def test_a_stream_that_is_dropped_gives_its_blocks_back(llm: LLM) -> None:
    for output in llm.stream(PROMPT, LONG):
        if len(output.outputs[0].token_ids) >= 3:
            break
    gc.collect()

    assert num_held(llm) == 0


def test_a_stream_that_is_not_begun_starts_nothing(llm: LLM) -> None:
    before = llm.stats().num_prompt_tokens

    llm.stream(PROMPT, LONG).close()

    assert llm.stats().num_prompt_tokens == before


async def collect(llm: LLM, prompt: str, params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return [output async for output in llm.generate_async(prompt, params)]


def test_async_streams_run_together_and_give_what_generate_gives(llm: LLM) -> None:
    prompts = ["one", "the second", "and a third prompt"]

    async def run() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(collect(llm, prompt) for prompt in prompts))

    for prompt, outputs in zip(prompts, asyncio.run(run()), strict=True):
        assert outputs[-1].finished and not outputs[0].finished
        assert outputs[-1].outputs == generate(llm, prompt).outputs


def test_cancelling_a_task_gives_its_blocks_back(llm: LLM) -> None:
    async def run() -> int:
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in llm.generate_async(PROMPT, LONG):
                begun.set()

        task = asyncio.create_task(consume())
        await begun.wait()
        held = await asyncio.to_thread(num_held, llm)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return held

    assert asyncio.run(run()) > 0
    assert num_held(llm) == 0


def test_a_task_cancelled_while_its_request_is_handed_over_starts_nothing(llm: LLM) -> None:
    before = llm.stats().num_prompt_tokens
    is_blocked, may_go_on = threading.Event(), threading.Event()

    def block(_: Engine) -> None:
        is_blocked.set()
        assert may_go_on.wait(TIMEOUT_S)

    blocker = threading.Thread(target=lambda: llm._thread.call(block))
    blocker.start()
    assert is_blocked.wait(TIMEOUT_S)

    async def run() -> None:
        task = asyncio.create_task(collect(llm, PROMPT, LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    may_go_on.set()
    blocker.join(TIMEOUT_S)

    assert llm.stats().num_prompt_tokens == before
    assert num_held(llm) == 0


def test_leaving_an_async_stream_and_its_loop_gives_the_blocks_back(llm: LLM) -> None:
    async def run() -> None:
        async for _ in llm.generate_async(PROMPT, LONG):
            break

    asyncio.run(run())

    assert num_held(llm) == 0


def test_a_bad_async_request_is_refused_in_the_task(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt is empty, must have at least 1 character"):
        asyncio.run(collect(llm, ""))


def test_chat_is_generate_on_what_the_template_writes(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing before it, though the tokenizer puts a token before a text."""
    tokenizer = Tokenizer.from_folder(write_text_checkpoint(tmp_path, add_bos=True))
    assert tokenizer is not None and tokenizer.encode("a") == [1, *ids_of("a")]
    monkeypatch.setattr(llm, "_tokenizer", tokenizer)
    one = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    other = [{"role": "user", "content": "Bye"}]

    (alone,) = llm.chat(one, GREEDY, use_tqdm=False)
    both = llm.chat([one, other], GREEDY, use_tqdm=False)

    assert alone.prompt_token_ids == ids_of("user: Hello") + [0] + ids_of("assistant: Hi") + [0]
    assert both[0].outputs == alone.outputs
    assert both[1].outputs == generate(llm, [*ids_of("user: Bye"), 0]).outputs


def test_chat_without_a_template_or_a_tokenizer_says_what_is_missing(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    plain = Tokenizer.from_folder(write_text_checkpoint(tmp_path, template=None))

    monkeypatch.setattr(llm, "_tokenizer", plain)
    with pytest.raises(RequestError, match="the checkpoint has no chat template: send a prompt"):
        llm.chat(messages, use_tqdm=False)
    monkeypatch.setattr(llm, "_tokenizer", None)
    with pytest.raises(RequestError, match="the checkpoint has no tokenizer.json: send token ids"):
        llm.chat(messages, use_tqdm=False)


def test_threads_generate_at_once_what_each_would_alone(llm: LLM) -> None:
    prompts = mixed_prompts(8, longest=40, seed=5)
    expected = [generate(llm, prompt).outputs for prompt in prompts]
    found: dict[int, list[RequestOutput]] = {}

    def serve(first: int) -> None:
        found[first] = llm.generate(prompts[first : first + 4], GREEDY, use_tqdm=False)

    threads = [threading.Thread(target=serve, args=(first,)) for first in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert [output.outputs for output in found[0] + found[4]] == expected


@pytest.fixture
def listening() -> Iterator[None]:
    """A runner in the background may have left SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_cancels_and_leaves_the_engine_usable(llm: LLM) -> None:
    waiting = threading.get_ident()

    def interrupt(engine: Engine) -> bool:
        # On the engine's thread, so the request cannot end meanwhile.
        if engine.num_running:
            signal.pthread_kill(waiting, signal.SIGINT)
        return bool(engine.num_running)

    def press() -> None:
        while not llm._thread.call(interrupt):
            pass

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, "another"], LONG, use_tqdm=False)
    presser.join(TIMEOUT_S)

    assert num_held(llm) == 0
    assert llm._thread.call(lambda engine: engine.num_waiting) == 0
    assert len(generate(llm, PROMPT).outputs[0].token_ids) == 12


def start_cold(**settings: Any) -> LLM:
    """Start an engine that compiles only what it runs."""
    return make_llm(mesh="cpu-1", num_blocks=32, warm_up=False, **settings)


def test_close_ends_what_runs_as_cancelled_and_every_later_use_says_so() -> None:
    llm = start_cold()
    streamed: list[RequestOutput] = []
    has_begun = threading.Event()

    def consume() -> None:
        for output in llm.stream([5, 6, 7], LONG):
            streamed.append(output)
            has_begun.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert has_begun.wait(TIMEOUT_S)

    llm.close()
    consumer.join(TIMEOUT_S)

    (sample,) = streamed[-1].outputs
    assert (sample.finish_reason, streamed[-1].finished) == ("cancelled", True)
    assert 0 < len(sample.token_ids) < 230
    llm.close()
    closed = pytest.raises(EngineStopped, match="the engine takes no requests: it was closed")
    for use in (
        lambda: generate(llm, [5]),
        lambda: next(llm.stream([5])),
        lambda: asyncio.run(collect(llm, [5])),  # pyright: ignore[reportArgumentType]
        llm.stats,
        llm.pool,
    ):
        with closed:
            use()


def test_a_forgotten_llm_stops_its_thread() -> None:
    llm = start_cold()
    thread = llm._thread._thread
    assert thread.is_alive()

    del llm
    gc.collect()

    assert not thread.is_alive()


CODE = """
import threading
from distkv_jax import LLM, SamplingParams

llm = LLM({model!r}, mesh="cpu-1", dtype="float32", block_size=8, num_blocks=32,
          max_num_seqs=8, max_num_batched_tokens=32, warm_up=False)
params = SamplingParams(temperature=0, max_tokens=230, ignore_eos=True)
threading.Thread(
    target=lambda: llm.generate([[5, 6, 7]], params, use_tqdm=False), daemon=True
).start()
stream = llm.stream([8, 9], params)
print(len(next(stream).outputs[0].token_ids))
"""


def test_an_interpreter_exits_cleanly_in_the_middle_of_requests() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "tests"),
    }

    done = subprocess.run(
        [sys.executable, "-c", CODE.format(model=str(GOLDEN / "llama3_gqa_tied"))],
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT_S,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
