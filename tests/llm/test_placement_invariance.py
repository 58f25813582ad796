"""Where tokens are computed and blocks are placed never changes what is generated."""

import pytest

from tests.llm.engines import Greedy, greedy, make_llm, mixed_prompts, num_ties

PROMPTS = mixed_prompts()


@pytest.fixture(scope="module")
def expected() -> list[Greedy]:
    """One instance, one prompt after the other."""
    with make_llm(mesh="cpu-1", num_blocks=64) as llm:
        return [greedy(llm, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize("mesh", ["cpu-1", "cpu-2", "cpu-8", "cpu-2x2", "cpu-1x4"])
def test_every_mesh_gives_the_same_tokens(mesh: str, expected: list[Greedy]) -> None:
    with make_llm(mesh=mesh) as llm:
        found = greedy(llm, PROMPTS)
        stats = llm.stats()

    assert num_ties(expected, found) == 0
    has_instances = not mesh.startswith("cpu-1")
    assert (stats.num_spanning_steps > 0) == has_instances


@pytest.mark.parametrize("chunk", [32, 512])
def test_every_chunk_size_gives_the_same_tokens(chunk: int, expected: list[Greedy]) -> None:
    with make_llm(max_num_batched_tokens=chunk, spread_tokens=64) as llm:
        found = greedy(llm, PROMPTS)

    assert num_ties(expected, found) == 0


@pytest.mark.parametrize("policy", ["random", "round_robin"])
def test_blocks_anywhere_give_the_same_tokens(policy: str, expected: list[Greedy]) -> None:
    with make_llm(mesh="cpu-8", placement=policy, num_blocks=24) as llm:
        found = greedy(llm, PROMPTS)
        outputs = llm.generate(PROMPTS[5], use_tqdm=False)

    assert num_ties(expected, found) == 0
    assert len(outputs[0].instances_used) > 4


def test_preemption_gives_the_same_tokens(expected: list[Greedy]) -> None:
    with make_llm(num_blocks=12) as llm:
        found = greedy(llm, PROMPTS)
        stats = llm.stats()

    assert stats.num_preemptions > 0
    assert num_ties(expected, found) == 0


def test_without_pooling_the_tokens_are_the_same(expected: list[Greedy]) -> None:
    with make_llm(pooling=False) as llm:
        found = greedy(llm, PROMPTS)
        stats = llm.stats()

    assert num_ties(expected, found) == 0
    assert stats.num_spanning_steps == 0
