"""From a command line to an exit code: 0 done, 1 a request failed, 2 bad input, 130 interrupted."""

import importlib
import os
import sys
from collections.abc import Sequence

from distkv_jax.cli.parser import build_parser
from distkv_jax.errors import (
    ConfigError,
    DistKVError,
    NotAllowed,
    PromptTooLong,
    QueueFull,
    RequestError,
    Unauthenticated,
    Unavailable,
)

BAD_INPUT = 2
INTERRUPTED = 130

# The first that fits; what to do next is the same for all errors of a kind.
HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (
        PromptTooLong,
        "raise --num-blocks, take a mesh with more instances, or lower --max-tokens; "
        "`distkv fit` shows what fits",
    ),
    (QueueFull, "raise --max-num-queued-reqs, or give fewer prompts at once"),
    (
        Unavailable,
        "is the server running at that address? `distkv serve` starts one",
    ),
    (Unauthenticated, "set DISTKV_API_KEY, or give --api-key-file"),
    (NotAllowed, "ask for a key marked admin, or use one"),
    (RequestError, "`distkv {command} --help` lists every setting and its limits"),
    (ConfigError, "`distkv {command} --help` lists every setting; `distkv meshes` every mesh"),
    (OSError, "check the path and its permissions"),
    (DistKVError, "run the same command again; if it fails again, report it with its output"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None for the process's own.

    Returns:
        The exit code. Errors of input have been told on standard error, in one line and a hint.

    Raises:
        SystemExit: `--help` or `--version` was asked for (0), or a flag is wrong (2).
    """
    args = build_parser().parse_args(argv)
    try:
        # One command's imports only: most bring JAX, which takes seconds.
        return importlib.import_module(f"distkv_jax.cli.{args.command}").run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DistKVError, OSError) as error:
        sys.stdout.flush()
        print(complaint(error, args.command), file=sys.stderr)
        return BAD_INPUT


def complaint(error: DistKVError | OSError, command: str) -> str:
    """Write what a person reads of an error: `error: …` in one line, and `hint: …`."""
    text = "; ".join([str(error), *getattr(error, "__notes__", ())])
    hint = next(hint for kind, hint in HINTS if isinstance(error, kind))
    return f"error: {' '.join(text.split())}\nhint: {hint.format(command=command)}"
