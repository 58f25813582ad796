"""What rank 0 tells who started the processes, as lines of its standard error."""

import re
import sys
from typing import NamedTuple

UP = "distkv-world: the world is up"
"""It serves; from now on its death is worth a new start."""
READY = "distkv-world: ranks that are lost may come again"
"""Follows `UP` where the mesh allows it."""
FENCED = "distkv-world: kill rank {rank}, process {pid}"


class Fenced(NamedTuple):
    """A process that the world goes on without; it may be stopped, with its sockets open.

    Attributes:
        rank: Which it was.
        pid: Its own, on its host.
    """

    rank: int
    pid: int


def tell(line: str) -> None:
    """Say a line in one write: two would let another thread's words between."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def tell_fenced(rank: int, pid: int) -> None:
    """Ask for a process to be killed, dead as it may be."""
    tell(FENCED.format(rank=rank, pid=pid))


def told_by(line: str) -> Fenced | str | None:
    """Read a line without its end: `UP`, `READY` or who is fenced off; None for another one."""
    if line in (UP, READY):
        return line
    found = re.fullmatch(FENCED.format(rank=r"(\d{1,6})", pid=r"(\d{1,10})"), line, re.ASCII)
    return None if found is None else Fenced(int(found[1]), int(found[2]))
