"""Do random checkpoints of every family give what transformers gives, through the engine?

    pip install '.[parity]' && python -m benchmarks.parity --seeds 5 --mesh cpu-2

Every checkpoint is served as it is and from its orbax conversion, with its KV blocks placed on
random instances. Prints a JSON line for every checkpoint and one for all; exits 1 where prompt
log-probabilities differ by 2e-4, where a greedy token differs though transformers' best two
logits are 4e-4 apart, or where closer ones (ties) are more than 1 % of the cases.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from distkv_jax.models.convert import convert
from tests.models.make_golden import CASES, NUM_GREEDY, PROMPT_LENGTHS, golden, write_checkpoint

LOGPROB_TOLERANCE = 2e-4
TIE_GAP = 4e-4
MAX_TIES = 0.01
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_GREEDY, ignore_eos=True, prompt_logprobs=20)


class Outcome(NamedTuple):
    """How one prompt of a checkpoint compares; printed as it is.

    Attributes:
        logprob_error: Largest difference over the prompt's reported log-probabilities.
        differs_at: First greedy token that differs, or None.
        gap: By how much transformers preferred its own token there, in logits.
        num_instances: Instances that computed or held the request's tokens.
    """

    logprob_error: float
    differs_at: int | None
    gap: float | None
    num_instances: int

    @property
    def is_tie(self) -> bool:
        """Whether the greedy tokens part where they may."""
        return self.gap is not None and self.gap < TIE_GAP

    @property
    def is_right(self) -> bool:
        """Whether nothing differs that may not."""
        has_tokens = self.differs_at is None or self.is_tie
        return has_tokens and self.logprob_error < LOGPROB_TOLERANCE


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the checkpoints that the command line names."""
    args = _parser().parse_args(argv)
    outcomes: list[Outcome] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for family in args.family or CASES:
            for source, found in compare(family, seed, args.mesh, args.block_size):
                line = {"family": family, "seed": seed, "source": source}
                print(json.dumps(line | _columns(found)), flush=True)
                outcomes += found
    num_ties = sum(outcome.is_tie for outcome in outcomes)
    is_right = all(outcome.is_right for outcome in outcomes)
    summary = {
        "mesh": args.mesh,
        "cases": len(outcomes),
        "right": sum(outcome.is_right for outcome in outcomes),
        "ties": num_ties,
        "largest_logprob_error": max(outcome.logprob_error for outcome in outcomes),
        "on_several_instances": sum(outcome.num_instances > 1 for outcome in outcomes),
    }
    print(json.dumps(summary))
    return 0 if is_right and num_ties <= MAX_TIES * len(outcomes) else 1


def compare(
    family: str, seed: int, mesh: str, block_size: int
) -> Iterator[tuple[str, list[Outcome]]]:
    """Make a checkpoint, and compare it as it is and converted."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "safetensors"
        reference = golden(write_checkpoint(family, seed, folder), seed)
        yield folder.name, _serve(folder, reference, mesh, block_size)
        converted = convert(folder, Path(parent) / "orbax")
        yield converted.name, _serve(converted, reference, mesh, block_size)


def compare_output(
    output: RequestOutput, reference: Mapping[str, np.ndarray], number: int
) -> Outcome:
    """Compare one request's output with prompt `number` of the reference."""
    logits = reference[f"logits_{number}"].astype(np.float64)
    wanted = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    # Row t scores the token after t, and the report of token t is about t itself.
    errors = [
        abs(entry.logprob - float(wanted[position - 1, token_id]))
        for position, entries in enumerate(output.prompt_logprobs or ())
        for token_id, entry in (entries or {}).items()
    ]
    given = np.asarray(output.outputs[0].token_ids)
    differs = np.flatnonzero(given != reference[f"greedy_{number}"])
    at = int(differs[0]) if differs.size else None
    return Outcome(
        logprob_error=max(errors, default=0.0),
        differs_at=at,
        gap=None if at is None else float(reference[f"gap_{number}"][at]),
        num_instances=len(output.instances_used),
    )


def _serve(
    folder: Path, reference: Mapping[str, np.ndarray], mesh: str, block_size: int
) -> list[Outcome]:
    numbers = range(len(PROMPT_LENGTHS))
    llm = LLM(
        folder,
        mesh=mesh,
        dtype="float32",
        block_size=block_size,
        num_blocks=len(PROMPT_LENGTHS) * 256 // block_size,
        placement="random",
        max_num_seqs=len(PROMPT_LENGTHS),
        max_num_batched_tokens=64,
        warm_up=False,
    )
    with contextlib.closing(llm):
        prompts = [reference[f"prompt_{number}"].tolist() for number in numbers]
        outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [compare_output(outputs[number], reference, number) for number in numbers]


def _columns(outcomes: Sequence[Outcome]) -> dict[str, object]:
    columns = zip(*outcomes, strict=True)
    return dict(zip(Outcome._fields, map(list, columns), strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="checkpoints of each family")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--family", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--mesh", default="cpu-2")
    parser.add_argument("--block-size", type=int, default=16)
    return parser


if __name__ == "__main__":
    sys.exit(main())
