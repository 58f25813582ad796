"""Every request ends exactly once, its blocks are free then, and nothing compiles while serving."""

import random
import threading

import jax
import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import PromptTooLong
from tests.llm.engines import VOCAB, make_llm

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiles:
    """Counts compilations from its birth on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == COMPILE_EVENT


def test_a_listener_hears_compilations() -> None:
    compiles = Compiles()

    jax.jit(lambda x: x * 3 + random.random())(jax.numpy.ones(3))

    assert compiles.count > 0


def test_200_random_requests_leave_every_block_free() -> None:
    rng = random.Random(1)
    num_blocks, block_size = 6, 8
    with make_llm(mesh="cpu-8", num_blocks=num_blocks, block_size=block_size) as llm:
        compiles = Compiles()
        finished: list[str] = []

        def serve(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(25):
                length = mine.choice([1, 5, 20, mine.randint(1, 4 * num_blocks * block_size)])
                params = SamplingParams(
                    temperature=mine.choice([0.0, 1.0]),
                    max_tokens=mine.randint(1, 16),
                    n=mine.choice([1, 1, 3]),
                    presence_penalty=mine.choice([0.0, 0.5]),
                    logprobs=mine.choice([None, 2]),
                )
                prompt = [mine.randrange(3, VOCAB) for _ in range(length)]
                stream = llm.stream(prompt, params)
                patience = mine.choice([1, 3, 100])
                for count, output in enumerate(stream):
                    if output.finished:
                        finished.append("finished")
                        assert all(one.finish_reason for one in output.outputs)
                    elif count >= patience:
                        stream.close()
                        finished.append("left")
                        break

        threads = [threading.Thread(target=serve, args=(rng.random(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        llm.generate([5], SamplingParams(max_tokens=1), use_tqdm=False)

        assert len(finished) == 200
        assert finished.count("left") > 10
        assert compiles.count == 0
        usage = llm.pool().usage
        assert [one.free for one in usage] == [num_blocks] * 8


def test_the_longest_request_uses_every_block_of_the_mesh() -> None:
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    longest = {}
    for mesh, instances in (("cpu-1", 1), ("cpu-8", 8)):
        with make_llm(mesh=mesh, num_blocks=3) as llm:
            slots = 3 * 8 * instances
            (output,) = llm.generate([[7] * (slots - 1)], params, use_tqdm=False)
            longest[mesh] = len(output.prompt_token_ids) + 1
            assert output.outputs[0].finish_reason == "length"
            assert len(output.instances_used) == instances
            with pytest.raises(
                PromptTooLong,
                match=rf"prompt of {slots} tokens with max_tokens=2 needs {slots + 1} KV slots, "
                rf"{instances} instances .* hold {slots} for one request",
            ):
                llm.generate([[7] * slots], params, use_tqdm=False)

    assert longest["cpu-8"] == 8 * longest["cpu-1"]
