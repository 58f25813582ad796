"""Two processes serve what one would: the same tokens, over pools that both hold.

Real processes, real sockets, gloo between them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.needle_models import NEEDLES
from distkv_jax.cache.performance import Profile
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import Client
from tests.llm.engines import make_llm, mixed_prompts, num_ties, to_greedy
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import Service, wait_until

PROMPTS = [prompt["prompt_token_ids"] for prompt in mixed_prompts()]
HEARTBEAT_S = 4
POOL = ("--block-size", "8", "--num-blocks", "20", "--max-num-seqs", "8")
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
SEVERAL = [
    SamplingParams(seed=1, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=2, n=2, presence_penalty=1, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=3, logprobs=2, logit_bias={5: 2.0}, max_tokens=12, ignore_eos=True),
]
LONG = SamplingParams(temperature=0, max_tokens=250, ignore_eos=True)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """One with random weights, and one that finds needles; they start side by side."""
    model, needle = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("needle")
    profile = tmp_path_factory.mktemp("profile") / "linear.json"
    Profile.linear().save(profile)
    write_text_checkpoint(model)
    NEEDLES["lookup"].write(needle)
    common = ("--step-profile", str(profile), "--heartbeat-timeout-s", str(HEARTBEAT_S))
    batch = ("--max-num-batched-tokens", "32", "--lend-cap", "12", "--move-tokens-per-step", "64")
    pair = (
        Service(model, *POOL, *batch, *common),
        Service(
            needle,
            *("--block-size", "16", "--num-blocks", "36", "--max-num-seqs", "4"),
            *("--max-num-batched-tokens", "128", "--no-warm-up", *common),
        ),
    )
    yield pair
    for service in pair:
        service.close()


@pytest.fixture(scope="module")
def client(services: tuple[Service, Service]) -> Iterator[Client]:
    with services[0].connect() as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> Iterator[tuple[list[RequestOutput], list[RequestOutput]]]:
    """What one process with room for everything gives."""
    with make_llm(mesh="cpu-1", num_blocks=64) as llm:
        prompts = [{"prompt_token_ids": tokens} for tokens in PROMPTS]
        alone = [llm.generate([one], GREEDY, use_tqdm=False)[0] for one in prompts]
        several = llm.generate(prompts[: len(SEVERAL)], SEVERAL, use_tqdm=False)
        yield alone, several


def test_greedy_tokens_are_those_of_one_process(
    client: Client, expected: tuple[list[RequestOutput], list[RequestOutput]]
) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        found = list(threads.map(lambda tokens: client.generate(tokens, GREEDY), PROMPTS))
    totals = next(client.watch()).totals

    assert num_ties([to_greedy(one) for one in expected[0]], [to_greedy(one) for one in found]) == 0
    for want, have in zip(expected[0], found, strict=True):
        assert logprobs_of(have) == pytest.approx(logprobs_of(want), abs=1e-3)
    # Longer than one process's pool.
    assert max(len(tokens) for tokens in PROMPTS) + 24 > 20 * 8
    assert totals.num_spanning_steps > 0
    assert totals.num_moved_blocks > 0
    assert all(one.free == one.total for one in client.pool().instances)


def logprobs_of(output: RequestOutput) -> list[float]:
    """The log-probability of each token, and of the two likeliest in its place."""
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    return [one.logprob for entry in logprobs for _, one in sorted(entry.items())]


def test_sampled_tokens_and_samples_are_those_of_one_process(
    client: Client, expected: tuple[list[RequestOutput], list[RequestOutput]]
) -> None:
    for tokens, params, want in zip(PROMPTS, SEVERAL, expected[1], strict=False):
        found = client.generate(tokens, params)
        assert [one.token_ids for one in found.outputs] == [one.token_ids for one in want.outputs]


def test_a_cancelled_request_frees_its_blocks(client: Client) -> None:
    stream = client.stream(PROMPTS[5], LONG)
    next(stream)
    assert any(one.held for one in client.pool().instances)
    stream.close()

    wait_until(lambda: not client.load().num_requests, "it ends")
    wait_until(lambda: not any(one.held for one in client.pool().instances), "blocks are free")


@pytest.fixture(scope="module")
def needle_client(services: tuple[Service, Service]) -> Iterator[Client]:
    with services[1].connect() as client:
        yield client


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.6, 1.0])
def test_a_needle_is_found_wherever_it_lies(needle_client: Client, depth: float) -> None:
    needle = NEEDLES["lookup"]
    prompt = needle.prompt(900, needle.position_at(900, depth), seed=round(10 * depth))
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    stream = needle_client.stream(prompt.token_ids, params)
    first = next(stream)
    held = [one.held for one in needle_client.pool().instances]
    list(stream)

    assert first.outputs[0].token_ids[0] == prompt.answer
    # 57 blocks, of which one process has room for 36.
    assert max(held) <= 36


def test_a_service_that_is_told_to_stop_drains_and_all_end_in_order(tmp_path: Path) -> None:
    service = Service(write_text_checkpoint(tmp_path), *POOL, "--no-warm-up")
    try:
        with service.connect() as client:
            stream = client.stream(PROMPTS[1], LONG)
            next(stream)
            service.popen.terminate()
            # An accepted request is finished first.
            last = list(stream)[-1]
        assert last.outputs[0].finish_reason == "length"
        assert service.end() == 0, service.text
        assert "stopped, nothing was lost" in service.text
        assert "rank 1 stopped with its leader" in service.text
    finally:
        service.close()
