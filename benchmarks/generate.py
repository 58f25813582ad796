"""How do prefill, decode and start-up compare with a peer's, in one run on one machine?

    python -m benchmarks.generate --model DIR --batch 8 --prompt 128 --new 32 \
        --peer "python vllm_cpu.py DIR --batch 8 --prompt 128 --new 32"

Every round starts a fresh process of ours and then one of the peer, so a drift of the machine
meets both. Our first process finds an empty compile cache, the later ones the cache that it
filled. A peer is any command whose last line is JSON with `prefill_tok_s` and `decode_tok_s`.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from benchmarks.generate_once import make_parser
from benchmarks.measure import wall_clock
from distkv_jax.environment import CACHE_VARIABLE

COMMAND = [sys.executable, "-m", "benchmarks.generate_once"]
RATES = ("prefill_tok_s", "decode_tok_s")

Finding: TypeAlias = Mapping[str, float | str | None]
"""The last line of a process, parsed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in rounds as the command line says; print every line and a summary."""
    parser = make_parser()
    parser.add_argument(
        "--rounds", type=int, default=2, help="processes of each; the first starts cold"
    )
    parser.add_argument("--peer", help="command that measures a peer")
    args = parser.parse_args(argv)
    passed_on = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(args).items()
        if name not in ("rounds", "peer", "spawned_at") and value is not None
    ]
    ours: list[Finding] = []
    peers: list[Finding] = []
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {CACHE_VARIABLE: cache}
        for _ in range(args.rounds):
            spawned_at = f"--spawned-at={wall_clock()}"
            ours.append(_last_line([*COMMAND, *passed_on, spawned_at], environment))
            if args.peer:
                peers.append(_last_line(shlex.split(args.peer), os.environ))
    print(json.dumps(summary(ours, peers)))
    return 0


def summary(ours: Sequence[Finding], peers: Sequence[Finding]) -> Finding:
    """Put rounds together: medians of both sides, and the ratio where there is a peer."""
    cold, *warm = (_number(finding, "first_token_s") for finding in ours)
    result: dict[str, float | str | None] = {
        "summary": f"{len(ours)} rounds",
        "cold_first_token_s": cold,
        "warm_first_token_s": statistics.median(warm) if warm else None,
    }
    for rate in RATES:
        our_median = statistics.median(_number(finding, rate) for finding in ours)
        result[rate] = our_median
        if peers:
            peer_median = statistics.median(_number(finding, rate) for finding in peers)
            result[f"peer_{rate}"] = peer_median
            result[f"{rate}_ratio"] = round(our_median / peer_median, 3)
    return result


def _number(finding: Finding, name: str) -> float:
    value = finding.get(name)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r} in the last line of a process must be a number")
    return value


def _last_line(command: Sequence[str], environment: Mapping[str, str]) -> Finding:
    """Run a command, show what it prints, and parse its last line."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
