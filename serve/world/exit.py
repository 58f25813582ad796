"""The end of a process that cannot end in order: its devices wait for one that is gone."""

import os
import sys

from distkv_jax.errors import WorldLost

LOST = 3
"""Exit code of a process whose world was lost."""


def end_process(error: WorldLost) -> None:
    """Tell why a world was lost, and leave at once."""
    leave_at_once(f"error: {error}", LOST)


def leave_at_once(told: str, code: int) -> None:
    """Say something last, and leave.

    Not by an exception: the thread that would raise it may wait inside a collective for ever, and
    so may what JAX and XLA do when an interpreter ends in order.
    """
    print(told, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
