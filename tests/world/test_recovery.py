"""A process that follows may die or stop: no stream loses, repeats or changes a token.

Real processes, killed and stopped while they work; what all is compared with is one process that
nobody disturbs.
"""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from distkv_jax.cache.performance import Profile
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import Client
from tests.llm.engines import make_llm, mixed_prompts
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import Service, wait_until

HOSTS = 3
HEARTBEAT_S = 4.0
POOL = ("--block-size", "8", "--num-blocks", "32", "--max-num-seqs", "8")
COUNT = 60
PROMPTS = [prompt["prompt_token_ids"][:40] for prompt in mixed_prompts()[:5]]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=COUNT, ignore_eos=True),
    SamplingParams(seed=2, n=2, presence_penalty=1, max_tokens=COUNT, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True),
    SamplingParams(seed=3, logit_bias={5: 2.0}, max_tokens=COUNT, ignore_eos=True),
]
Tokens = list[list[int]]
"""Of each sample of a request."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    Profile.linear().save(folder / "linear.json")
    mesh = folder / "cpu-3.toml"
    mesh.write_text(
        f'platform = "cpu"\nsimulated = true\naxes = {{ instance = {HOSTS}, tensor = 1 }}\n'
    )
    service = Service(
        write_text_checkpoint(folder / "model"),
        *POOL,
        *(
            "--no-warm-up",
            "--max-num-batched-tokens",
            "32",
            "--step-profile",
            str(folder / "linear.json"),
        ),
        *("--heartbeat-timeout-s", str(HEARTBEAT_S)),
        hosts=HOSTS,
        mesh=mesh,
    )
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with service.connect() as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> list[Tokens]:
    """What one process with room for everything gives."""
    with make_llm(mesh="cpu-1", num_blocks=160) as llm:
        prompts = [{"prompt_token_ids": tokens} for tokens in PROMPTS]
        outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [[list(one.token_ids) for one in output.outputs] for output in outputs]


class Streams:
    """All requests at once, and when each of their tokens came."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(len(PROMPTS))
        self.times: list[float] = []
        self._found: list[Future[Tokens]] = [
            self._threads.submit(self._read, tokens, params)
            for tokens, params in zip(PROMPTS, PARAMS, strict=True)
        ]

    def result(self) -> list[Tokens]:
        """Wait for all to end."""
        with self._threads:
            return [one.result() for one in self._found]

    def pause_after(self, begin: float) -> float:
        """Seconds from a disturbance until tokens came again, after the longest gap."""
        times = sorted(time for time in [begin, *self.times] if time >= begin)
        gaps = ((after - before, after) for before, after in itertools.pairwise(times))
        end = max(gaps)[1]
        return end - begin

    def _read(self, prompt: list[int], params: SamplingParams) -> Tokens:
        outputs = []
        for output in self._client.stream(prompt, params):
            self.times.append(time.monotonic())
            outputs = output.outputs
        return [list(one.token_ids) for one in outputs]


def disturb(service: Service, client: Client, rank: int, number: int) -> tuple[list[Tokens], float]:
    """Send a signal to a rank while streams run; gives their tokens and the pause."""
    streams = Streams(client)
    wait_until(lambda: len(streams.times) > 5 * len(PROMPTS), service)
    begin = time.monotonic()
    os.kill(service.pid_of(rank), number)
    found = streams.result()
    return found, streams.pause_after(begin)


def wait_for_all(service: Service, client: Client) -> None:
    """Wait until all hosts are back."""
    wait_until(lambda: len(client.pool().instances) == HOSTS, service, 90)


@pytest.mark.parametrize("rank", [2, 1])
def test_a_killed_follower_is_a_pause_and_comes_back(
    service: Service, client: Client, expected: list[Tokens], rank: int
) -> None:
    killed = service.pid_of(rank)
    found, pause_s = disturb(service, client, rank, signal.SIGKILL)
    print(f"killed rank {rank}: {pause_s:.2f} s")

    assert found == expected
    wait_for_all(service, client)
    assert service.pid_of(rank) != killed
    # Also over the blocks of the one that came back.
    assert Streams(client).result() == expected


def test_a_stopped_follower_is_fenced_off(
    service: Service, client: Client, expected: list[Tokens]
) -> None:
    found, pause_s = disturb(service, client, 2, signal.SIGSTOP)
    print(f"stopped: {pause_s:.2f} s")

    assert found == expected
    assert pause_s > HEARTBEAT_S / 2
    wait_for_all(service, client)


def test_a_host_that_comes_back_under_load_is_a_pause_too(
    service: Service, client: Client, expected: list[Tokens]
) -> None:
    os.kill(service.pid_of(1), signal.SIGKILL)
    wait_until(lambda: len(client.pool().instances) < HOSTS, service, 60)
    while len(client.pool().instances) < HOSTS:
        assert Streams(client).result() == expected


def test_nothing_leaked_and_all_end_in_order(service: Service, client: Client) -> None:
    assert all(one.free == one.total for one in client.pool().instances)
    service.popen.terminate()

    assert service.end() == 0, service.text
    assert "stopped, nothing was lost" in service.text
