"""What a preempted sequence costs: its blocks to host memory and back, or its tokens again.

    python -m benchmarks.host_memory --context 64 1000 8000

Writes two JSON lines for each context: blocks saved and fetched, and a prompt prefilled.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.measure import Record, measure
from distkv_jax.engine.commands import Fetch, Save
from distkv_jax.engine.engine import Engine
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM


def run(
    contexts: Sequence[int], *, runs: int, model: str = "tiny", **settings: Any
) -> list[dict[str, Record]]:
    """Time both ways for every context.

    Args:
        contexts: Tokens of a sequence, each within one instance's pool.
        runs: Rounds after the first.
        model: As `LLM` takes it.
        **settings: More arguments of `LLM`.
    """
    block_size = settings.get("block_size", 64)
    most = -(-max(contexts) // block_size) + 1
    sizes = {"num_blocks": most, "host_blocks": most, "max_num_seqs": 4} | settings
    with LLM(model, **sizes) as llm:
        return [run_context(llm, context, runs=runs) for context in contexts]


def run_context(llm: LLM, context: int, *, runs: int) -> dict[str, Record]:
    """Time both ways for one context, on an engine without other work."""
    rng = random.Random(context)
    vocab, block_size = llm.model_config.vocab_size, llm.config.block_size
    prompt = [rng.randrange(vocab) for _ in range(context)]
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    num_blocks = -(-context // block_size)
    # Names that the engine does not give.
    names = itertools.count(-1, -1)

    def there_and_back(engine: Engine) -> None:
        runner, name = engine.runner, next(names)
        blocks = (tuple(range(num_blocks)), *[()] * (runner.num_instances - 1))
        runner.order(Save(0, name, "benchmark", 0, blocks))
        runner.order(Fetch(0, name, blocks))
        jax.block_until_ready(runner.pools)

    block_bytes = llm.thread.call(lambda engine: engine.runner.pool.block_bytes)
    return measure(
        {
            "host_memory/save_and_fetch": lambda: llm.thread.call(there_and_back),
            "host_memory/recompute": lambda: llm.generate(prompt, params, use_tqdm=False),
        },
        sizes={
            "context": context,
            "kv_bytes": num_blocks * block_bytes,
            "block_size": block_size,
            "max_num_batched_tokens": llm.config.max_num_batched_tokens,
        },
        runs=runs,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each way and context."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mesh", default="cpu-1")
    parser.add_argument("--context", type=int, nargs="+", default=[64, 1000, 8000])
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(argv)
    for records in run(given.context, runs=given.runs, model=given.model, mesh=given.mesh):
        for record in records.values():
            print(record.line())


if __name__ == "__main__":
    main()
