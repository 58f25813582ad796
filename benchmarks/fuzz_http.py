"""Schemathesis at a running server: whatever its OpenAPI document allows, and what it does not.

    python -m benchmarks.fuzz_http --http http://127.0.0.1:8000 --seconds 180

Exits with 1 if an answer is not as the document says, if one came with a status of 500 and above,
if the server does not answer afterwards, or if it still holds a block when all is over.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import schemathesis

from benchmarks.fuzz_grpc import leftovers
from distkv_jax.engine.sampling_params import MAX_N

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "n": 8}
"""It is the door that is tried, not the model."""
TIME_S = 60


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Keep answers short, and give them time: a 504 for time that is over is no finding."""
    del context, kwargs
    timeout = (case.headers or {}).get("x-request-timeout")
    with contextlib.suppress(TypeError, ValueError):
        if 0 < float(str(timeout)) < TIME_S:
            case.headers["x-request-timeout"] = str(TIME_S)
    if isinstance(case.body, dict):
        if case.body.get("max_tokens") is case.body.get("max_completion_tokens") is None:
            case.body["max_tokens"] = MOST["max_tokens"]
        for name, most in MOST.items():
            value = case.body.get(name)
            # Whatever the document forbids goes out as it is.
            if type(value) is int and value > most and (name != "n" or value <= MAX_N):
                case.body[name] = most


def fuzz(http: str, seconds: int, seed: int, key: str | None = None) -> int:
    """Let schemathesis try a server in a process of its own, and give its exit code."""
    command = [
        *(sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; "),
        *("run", f"{http}/openapi.json", "--url", http, "--phases", "examples,coverage,fuzzing"),
        *("--checks", ",".join(CHECKS), "--seed", str(seed), "--max-time", str(seconds)),
        *("--continue-on-failure", "--workers", "4", "--no-color"),
        *(("--header", f"authorization: Bearer {key}") if key else ()),
    ]
    command[2] += "schemathesis()"
    hooks = {"SCHEMATHESIS_HOOKS": "benchmarks.fuzz_http"}
    return subprocess.run(command, env=os.environ | hooks, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--http", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--seconds", type=int, default=180, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    code = fuzz(args.http, args.seconds, args.seed)
    left = asyncio.run(leftovers(args.server))
    print(left or "the server answers, and holds nothing")
    return 1 if left or code else 0


if __name__ == "__main__":
    sys.exit(main())
