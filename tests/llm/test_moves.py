"""Blocks that move while sequences run never change what is generated."""

from typing import Any

import pytest

from distkv_jax.engine import build
from tests.engine.random_planner import RandomPlanner
from tests.llm.engines import Greedy, greedy, make_llm, mixed_prompts, num_ties

PROMPTS = mixed_prompts()


@pytest.fixture(scope="module")
def expected() -> list[Greedy]:
    """One instance, one prompt after the other."""
    with make_llm(mesh="cpu-1", num_blocks=64) as llm:
        return [greedy(llm, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "settings",
    [
        {"mesh": "cpu-2"},
        {"mesh": "cpu-8", "num_blocks": 24},
        {"mesh": "cpu-2x2"},
        {"mesh": "cpu-2", "num_blocks": 12},
        {"mesh": "cpu-2", "kv_cache_dtype": "int8"},
    ],
    ids=["2x1", "8x1", "2x2", "with preemption", "quantised"],
)
def test_moves_at_random_steps_give_the_same_tokens(
    settings: dict[str, Any], expected: list[Greedy], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "kv_cache_dtype" in settings:
        with make_llm(mesh="cpu-1", num_blocks=64, kv_cache_dtype="int8") as llm:
            expected = greedy(llm, PROMPTS)
    num_instances = 8 if settings["mesh"] == "cpu-8" else 2
    monkeypatch.setattr(
        build,
        "make_planner",
        lambda config, model: None if model is None else RandomPlanner(num_instances),
    )
    with make_llm(**settings, plan_period=1, move_tokens_per_step=64) as llm:
        found = greedy(llm, PROMPTS)
        stats = llm.stats()

    assert stats.moved.planned > 20
    assert num_ties(expected, found) == 0


def test_recalled_loans_give_the_same_tokens(expected: list[Greedy]) -> None:
    with make_llm(mesh="cpu-2", num_blocks=20, move_tokens_per_step=64, lend_cap=12) as llm:
        found = greedy(llm, PROMPTS)
        stats = llm.stats()

    assert stats.moved.recalled > 0
    assert num_ties(expected, found) == 0
