"""The engine, its KV on two instances, gives what transformers gives."""

import math

import numpy as np
import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from tests.llm.engines import GOLDEN, TIE, Greedy, make_llm, num_ties

CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("case", CASES)
def test_prompt_logprobs_and_greedy_tokens_are_the_references(case: str) -> None:
    golden = np.load(GOLDEN / f"{case}.npz")
    indices = range(int(golden["num_prompts"]))
    prompts = [{"prompt_token_ids": golden[f"prompt_{i}"].tolist()} for i in indices]
    params = SamplingParams(
        temperature=0, max_tokens=64, ignore_eos=True, prompt_logprobs=4, logprobs=2
    )

    with make_llm(case, num_blocks=14, max_num_batched_tokens=16) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)

    expected = [
        Greedy(golden[f"greedy_{i}"].tolist(), golden[f"gap_{i}"].tolist()) for i in indices
    ]
    found = [Greedy(output.outputs[0].token_ids, []) for output in outputs]
    assert num_ties(expected, found) == 0
    assert max(output.remote_kv_tokens for output in outputs) > 0
    for i, output in zip(indices, outputs, strict=True):
        logits = golden[f"logits_{i}"].astype(np.float64)
        reference = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        for at, entry in enumerate(output.prompt_logprobs[1:]):
            assert entry is not None
            assert output.prompt_token_ids[at + 1] in entry
            for token, one in entry.items():
                # Bound of the logits; their log-sum-exp moves by no more.
                assert math.isclose(one.logprob, reference[at, token], abs_tol=TIE)
                assert one.rank == 1 + int((reference[at] > reference[at, token]).sum()) or (
                    np.abs(np.delete(reference[at], token) - reference[at, token]).min() < TIE
                )
