"""Debt circles: finds who owes whom in a circle, and how much of it can be called home."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Circle(NamedTuple):
    """Instances that each lent to the next, the last one to the first.

    Attributes:
        instances: At least two, none twice.
        num_blocks: Debt that each can call home, at least 1.
    """

    instances: tuple[int, ...]
    num_blocks: int


def debt_circles(lent: Sequence[Mapping[int, int]]) -> tuple[Circle, ...]:
    """List circles whose cancelling, one after the other, leaves a debt graph without any.

    A depth-first walk from creditor to debtor. Where it comes back to its own path, the smallest
    loan of that circle is cancelled all along it, so at least one edge is gone, and the walk goes
    on from the edge before. Of several ways back the shortest circle is taken: it moves fewest
    blocks. An instance's lent minus borrowed blocks stay what they were.

    Source: DGFM of Infinite-LLM, <https://arxiv.org/abs/2401.02669>; which circle comes first is
    our choice.

    Args:
        lent: For each instance, the blocks it lent, by debtor; at least 1 each.
    """
    left = [dict(debtors) for debtors in lent]
    circles: list[Circle] = []
    # Mutual loans first: they are the shortest circles there are.
    for creditor, debtors in enumerate(left):
        for debtor in [debtor for debtor in debtors if debtor > creditor]:
            if creditor in left[debtor]:
                circles.append(_cancel(left, [creditor, debtor]))
    finished = [False] * len(left)
    for start in range(len(left)):
        path = [start]
        position = {start: 0}
        while path:
            here = path[-1]
            for debtor in [debtor for debtor in left[here] if finished[debtor]]:
                # Nothing comes back from there.
                del left[here][debtor]
            back = max(
                (position[debtor] for debtor in left[here] if debtor in position), default=-1
            )
            if back >= 0:
                circle = _cancel(left, path[back:])
                circles.append(circle)
                # On from the first edge that is gone: all before it are whole.
                keep = next(
                    index
                    for index in range(back, len(path))
                    if index == len(path) - 1 or path[index + 1] not in left[path[index]]
                )
                for gone in path[keep + 1 :]:
                    del position[gone]
                del path[keep + 1 :]
            elif left[here] and not finished[here]:
                onward = next(iter(left[here]))
                position[onward] = len(path)
                path.append(onward)
            else:
                finished[here] = True
                del position[here]
                path.pop()
    return tuple(circles)


def _cancel(left: list[dict[int, int]], instances: list[int]) -> Circle:
    """Take the smallest loan of a circle off all of its loans."""
    debtors = [*instances[1:], instances[0]]
    edges = list(zip(instances, debtors, strict=True))
    num_blocks = min(left[creditor][debtor] for creditor, debtor in edges)
    for creditor, debtor in edges:
        left[creditor][debtor] -= num_blocks
        if not left[creditor][debtor]:
            del left[creditor][debtor]
    return Circle(tuple(instances), num_blocks)
