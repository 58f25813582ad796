"""`distkv convert`: a checkpoint rewritten so that it restores onto any mesh."""

import argparse

from distkv_jax.engine.progress import Progress
from distkv_jax.models.convert import convert


def run(args: argparse.Namespace) -> int:
    """Convert, with a progress bar.

    Raises:
        ConfigError: The source cannot be loaded or the target exists; nothing was written.
        OSError: The target cannot be written; nothing is left of it.
    """
    with Progress(is_shown=True) as progress:
        target = convert(args.source, args.target, progress.weights)
    print(f"wrote {target}; load it with --model {args.target}")
    return 0
