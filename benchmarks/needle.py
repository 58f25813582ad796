"""Does a hand-built model find one token anywhere in a context spread over a mesh?

    python -m benchmarks.needle --model lookup --context 1000000
    python -m benchmarks.needle --model induction --context 65536 --align 512

Prints a JSON line for every depth and one for all of them; exits 1 if any answer was wrong.
"""

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.needle_models import NEEDLES, Needle
from distkv_jax import LLM, SamplingParams
from distkv_jax.mesh import load_mesh_config

POOL_SLACK = 1.25
"""Default size of all pools together, in contexts."""

MAX_TOKENS = 32
"""The first token is the answer; the rest keep the blocks held while the pools are looked at."""


class Finding(NamedTuple):
    """What became of one needle; printed as it is.

    Attributes:
        depth: Where the needle was, from 0 (earliest) to 1 (latest).
        position: The same in tokens.
        answer: The right token.
        got: The model's token.
        is_right: Whether they are equal.
        kv_shares: The part of its blocks that each instance held.
        seconds: From the request to its first token, which is the answer.
    """

    depth: float
    position: int
    answer: int
    got: int
    is_right: bool
    kv_shares: dict[int, float]
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Hide a needle at every depth that the command line names."""
    args = _parser().parse_args(argv)
    needle = NEEDLES[args.model]
    share_blocks = args.context / load_mesh_config(args.mesh).instance / args.block_size
    num_blocks = args.num_blocks or math.ceil(POOL_SLACK * share_blocks)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        needle.write(Path(folder))
        llm = LLM(
            folder,
            mesh=args.mesh,
            dtype="float32",
            block_size=args.block_size,
            num_blocks=num_blocks,
            max_num_seqs=1,
            max_num_batched_tokens=args.max_num_batched_tokens,
        )
    start_s = time.perf_counter() - start
    findings = []
    with llm:
        for finding in find(llm, needle, args.context, args.depths, args.align):
            line = {"model": needle.name, "context": args.context, **finding._asdict()}
            print(json.dumps(line), flush=True)
            findings.append(finding)
    num_right = sum(finding.is_right for finding in findings)
    summary = {
        "model": needle.name,
        "context": args.context,
        "mesh": args.mesh,
        "right": num_right,
        "tried": len(findings),
        "pool_share": round(num_blocks * args.block_size / args.context, 4),
        "largest_kv_share": max(max(finding.kv_shares.values()) for finding in findings),
        "start_seconds": round(start_s, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    return 0 if num_right == len(findings) else 1


def find(
    llm: LLM, needle: Needle, context: int, depths: Sequence[float], align: int | None = None
) -> Iterator[Finding]:
    """Ask for one needle after the other; each request has the pools to itself.

    Args:
        llm: Has the needle's model loaded.
        needle: Makes the prompts.
        context: Tokens of every prompt.
        depths: Where the needles are, each from 0 (earliest) to 1 (latest).
        align: Moves each needle to the last position before a multiple of this; None for no move.

    Raises:
        RuntimeError: The engine gave a request up.
    """
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    for seed, depth in enumerate(depths):
        position = needle.position_at(context, depth)
        if align is not None:
            position = _last_before_multiple(align, position, needle.position_at(context, 1))
        prompt = needle.prompt(context, position, seed=seed)
        start = time.perf_counter()
        with contextlib.closing(llm.stream(prompt.token_ids, sampling)) as outputs:
            output = next(outputs)
            seconds = time.perf_counter() - start
            if output.finished:
                raise RuntimeError(f"no answer at depth {depth}: {output.outputs[0]}")
            blocks = llm.pool().placement[output.request_id]
        got = output.outputs[0].token_ids[0]
        num_blocks = sum(blocks.values())
        yield Finding(
            depth=depth,
            position=position,
            answer=prompt.answer,
            got=got,
            is_right=got == prompt.answer,
            kv_shares={at: round(blocks[at] / num_blocks, 4) for at in sorted(blocks)},
            seconds=round(seconds, 2),
        )


def _last_before_multiple(align: int, position: int, latest: int) -> int:
    """Return the position up to `latest`, nearest to `position`, before a multiple of `align`."""
    multiple = min(max(1, round((position + 1) / align)), (latest + 1) // align)
    return multiple * align - 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Find one token anywhere in a long context.")
    parser.add_argument("--model", choices=NEEDLES, default="lookup")
    parser.add_argument("--context", type=int, default=100_000, help="tokens of every prompt")
    parser.add_argument("--depths", type=_depths, default=_depths("0,0.1,0.25,0.5,0.75,0.9,1"))
    parser.add_argument(
        "--align",
        type=int,
        help="move every needle to the last token before a multiple of this: with "
        "--max-num-batched-tokens, K and V of an induction are on two instances",
    )
    parser.add_argument("--mesh", default="cpu-8")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument(
        "--num-blocks",
        type=int,
        help=f"blocks of each instance; default: {POOL_SLACK} contexts over all",
    )
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=512, help="prompt tokens per instance, step"
    )
    return parser


def _depths(text: str) -> list[float]:
    depths = [float(part) for part in text.split(",")]
    if not all(0 <= depth <= 1 for depth in depths):
        raise argparse.ArgumentTypeError(f"depths {text} must be within 0 and 1")
    return depths


if __name__ == "__main__":
    sys.exit(main())
