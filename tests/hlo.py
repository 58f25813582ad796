"""Reading compiled programs: which collectives they have, and between which devices."""

import re
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
    "send",
    "recv",
)
_OPERATION = re.compile(rf"= .*? ({'|'.join(KINDS)})(?:-start)?\(")
_LIST = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


class Collective(NamedTuple):
    """One collective operation."""

    kind: str
    groups: tuple[tuple[int, ...], ...]

    def crosses(self, tensor: int) -> bool:
        """Whether instances of `tensor` devices each exchange anything in it."""
        return any(len({device // tensor for device in group}) > 1 for group in self.groups)


def collectives(hlo: str | None) -> list[Collective]:
    """List a compiled program's collectives; one whose groups cannot be read is an error."""
    if hlo is None:
        raise ValueError("the backend gave no HLO")
    return [
        Collective(operation[1], _groups(line))
        for line in hlo.splitlines()
        if (operation := _OPERATION.search(line))
    ]


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """Read a line's device groups, which are lists, or a reshaped and transposed range."""
    if listed := _LIST.search(line):
        return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if iota := _IOTA.search(line):
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        order = _numbers(iota[3]) if iota[3] else list(range(len(dims)))
        devices = np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        return tuple(tuple(int(device) for device in group) for group in devices)
    raise ValueError(f"no device groups in: {line.strip()}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
