"""What rank 0 tells who started the processes, as lines of its standard error."""

import re
import sys
from typing import NamedTuple

UP = "distkv-world: the world is up"
READY = "distkv-world: ranks that are lost may come again"
FENCED = "distkv-world: kill rank {rank}, process {pid}"


class Fenced(NamedTuple):
    """A process that the world goes on without.

    Attributes:
        rank: Which it was.
        pid: Its own, on its host.
    """

    rank: int
    pid: int


def tell_fenced(rank: int, pid: int) -> None:
    """Ask for a process to be killed, dead as it may be."""
    print(FENCED.format(rank=rank, pid=pid), file=sys.stderr, flush=True)


def fenced_by(line: str) -> Fenced | None:
    """Read such a line; None for another one."""
    pattern = FENCED.format(rank=r"(\d+)", pid=r"(\d+)")
    found = re.fullmatch(pattern, line.rstrip("\n"))
    return None if found is None else Fenced(int(found[1]), int(found[2]))
