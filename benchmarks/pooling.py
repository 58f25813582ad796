"""What does pooling bring, on the same traffic with the same engine?

    python -m benchmarks.pooling --trace 5 --longest 0.95
    python -m benchmarks.pooling --trace uniform --pairs 9 --modes off planner
    python -m benchmarks.pooling --trace 8 --longest 6

Runs the tiny model on eight simulated instances in several modes: `off` (a request must fit its
home), `home` (borrow when home is full), `round_robin` (blocks over all instances) and `planner`
(`home`, and blocks move to where steps get faster). Prints one JSON line for each run.

Eight instances share this machine's cores, so wall-clock shows the work of all of them, while on
eight devices a step takes as long as its slowest instance. `modelled_tok_s` is that: tokens by the
sum of each step's slowest instance, by the planner's model of a 7B model on an A100, where an
instance's pool stands for `--pool-tokens` tokens.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.measure import machine, timed
from benchmarks.traffic import TRACES, Lengths, draw
from distkv_jax import LLM, SamplingParams
from distkv_jax.cache.performance import Profile
from distkv_jax.engine.prompt import Prompt

MODES: dict[str, dict[str, Any]] = {
    "off": {"pooling": False, "planner": False},
    "home": {"planner": False},
    "round_robin": {"placement": "round_robin", "planner": False},
    "planner": {},
}

SAMPLE_S = 0.05
"""Seconds between two looks at the pools."""

Finding: TypeAlias = dict[str, str | int | float | list[int] | dict[str, int]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run every mode as the command line says, in turn."""
    args = make_parser().parse_args(argv)
    pool = args.block_size * args.num_blocks
    requests = draw(
        TRACES[args.trace],
        args.requests,
        scale=pool / args.pool_tokens,
        longest=int(args.longest * pool),
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile.json")
        scaled_profile(args.pool_tokens / pool).save(profile)
        engines = {mode: make_llm(mode, args, profile) for mode in args.modes}
        watched: dict[str, list[list[int]]] = {}
        for round_number in range(args.pairs):
            for mode, llm in engines.items():
                with held_blocks(llm) as samples:
                    found = run(llm, requests, pool)
                watched[mode] = samples
                print(json.dumps({"mode": mode, "round": round_number} | found), flush=True)
        if args.plot:
            draw_held(watched, args.num_blocks, args.plot)
        for llm in engines.values():
            llm.close()
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description="compare modes of pooling on the same traffic")
    parser.add_argument("--trace", choices=TRACES, default="5")
    parser.add_argument("--longest", type=float, default=0.95, help="in pools of one instance")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--pairs", type=int, default=1, help="rounds over all modes")
    parser.add_argument("--mesh", default="cpu-8")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--num-blocks", type=int, default=64, help="of each instance")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--pool-tokens", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw the blocks held over time; an SVG or PNG")
    return parser


def scaled_profile(tokens_each: float) -> Profile:
    """Assume a 7B model on an A100, where each token here stands for several."""
    default = Profile.linear()
    kv_token_s = 1 / default.kv_tokens_per_s[0].per_s
    return Profile.linear(kv_token_s=kv_token_s * tokens_each)


def make_llm(mode: str, args: argparse.Namespace, profile: Path) -> LLM:
    """Start an engine."""
    return LLM(
        "tiny",
        mesh=args.mesh,
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        step_profile=str(profile),
        **MODES[mode],
    )


def run(llm: LLM, requests: Sequence[Lengths], pool: int) -> Finding:
    """Serve what can be served, and count."""
    before = llm.stats()
    # The last token needs no slot.
    fitting = [one for one in requests if one.total - 1 <= llm.capacity.request_tokens]
    prompts: list[Prompt] = [
        {"prompt_token_ids": [3 + (number + at) % 200 for at in range(lengths.prompt)]}
        for number, lengths in enumerate(fitting)
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=lengths.output, ignore_eos=True)
        for lengths in fitting
    ]
    timing = timed(lambda: llm.generate(prompts, params, use_tqdm=False))
    after = llm.stats()
    generated = after.num_generated_tokens - before.num_generated_tokens
    modelled_s = after.modelled_s - before.modelled_s
    return {
        "requests": len(requests),
        "refused": len(requests) - len(fitting),
        "longest_in_pools": round(max(one.total for one in requests) / pool, 2),
        "generated_tokens": generated,
        "steps": after.num_steps - before.num_steps,
        "spanning_steps": after.num_spanning_steps - before.num_spanning_steps,
        "preemptions": after.num_preemptions - before.num_preemptions,
        "moved_blocks": after.moved.total - before.moved.total,
        "coordinator_share": round(
            (after.coordinator_s - before.coordinator_s) / timing.seconds, 4
        ),
        "host_share": round((after.host_s - before.host_s) / timing.seconds, 4),
        "modelled_tok_s": round(generated / modelled_s, 1),
        "wall_tok_s": round(generated / timing.seconds, 1),
        "device": machine().device,
        "commit": machine().commit,
    }


@contextlib.contextmanager
def held_blocks(llm: LLM) -> Iterator[list[list[int]]]:
    """Look at every instance's held blocks while something runs."""
    samples: list[list[int]] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_S):
            samples.append([usage.held for usage in llm.pool().usage])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        is_over.set()
        watcher.join()


def draw_held(watched: dict[str, list[list[int]]], num_blocks: int, path: Path) -> None:
    """Draw a row of colours for each instance: how full it was over the run."""
    # Only who draws needs it: pip install 'distkv-jax[plot]'.
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(watched), 1, figsize=(8, 1.6 * len(watched)), squeeze=False, layout="constrained"
    )
    image = None
    for axis, (mode, samples) in zip(axes[:, 0], watched.items(), strict=True):
        shares = [[held / num_blocks for held in sample] for sample in zip(*samples, strict=True)]
        image = axis.imshow(shares, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axis.set(title=mode, ylabel="instance", xticks=[])
    axes[-1, 0].set_xlabel("time, from the first request to the last token")
    if image is not None:
        figure.colorbar(image, ax=axes[:, 0].tolist(), label="part of the pool that is held")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
