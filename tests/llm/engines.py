"""Small engines over the golden checkpoints, and how their tokens are compared."""

import random
from pathlib import Path
from typing import Any, NamedTuple

from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
VOCAB = 128
TIE = 4e-4
"""Logits of two programs differ by up to 2e-4 each, so that closer ones may change places."""


class Greedy(NamedTuple):
    """Greedy tokens with how clearly each was the best."""

    tokens: list[int]
    gaps: list[float]


def make_llm(case: str = "llama3_gqa_tied", *, mesh: str = "cpu-2", **settings: Any) -> LLM:
    """Start an engine with few and small programs."""
    small: dict[str, Any] = dict(
        block_size=8, num_blocks=48, max_num_seqs=8, max_num_batched_tokens=32
    )
    return LLM(GOLDEN / case, mesh=mesh, dtype="float32", **(small | settings))


def mixed_prompts(count: int = 16, longest: int = 150, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of many lengths, the shortest of one token."""
    rng = random.Random(seed)
    lengths = [1, 7, 8, 9, 33, longest] + [rng.randint(2, longest) for _ in range(count)]
    return [
        {"prompt_token_ids": [rng.randrange(3, VOCAB) for _ in range(length)]}
        for length in lengths[:count]
    ]


def greedy(llm: LLM, prompts: list[dict[str, list[int]]], max_tokens: int = 24) -> list[Greedy]:
    """Generate greedily, past end tokens."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=2)
    return [to_greedy(output) for output in llm.generate(prompts, params, use_tqdm=False)]


def to_greedy(output: RequestOutput) -> Greedy:
    """Read tokens and gaps out of an output with two log-probabilities a position."""
    sample = output.outputs[0]
    assert sample.logprobs is not None
    gaps = []
    for entry in sample.logprobs:
        best, second = sorted((one.logprob for one in entry.values()), reverse=True)[:2]
        gaps.append(best - second)
    return Greedy(sample.token_ids, gaps)


def num_ties(expected: list[Greedy], found: list[Greedy]) -> int:
    """Compare tokens; they may part only where the expected best two were closer than `TIE`."""
    ties = 0
    for index, (want, have) in enumerate(zip(expected, found, strict=True)):
        assert len(want.tokens) == len(have.tokens)
        parted = [
            i
            for i, pair in enumerate(zip(want.tokens, have.tokens, strict=True))
            if pair[0] != pair[1]
        ]
        if parted:
            gap = want.gaps[parted[0]]
            assert gap < TIE, f"prompt {index} parts at token {parted[0]}, gap {gap}"
            ties += 1
    return ties
