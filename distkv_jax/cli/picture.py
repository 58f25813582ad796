"""A picture of which instance holds which request's blocks, one character each, in a terminal."""

import collections
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.text import Text

from distkv_jax.llm import PoolView

LETTERS = string.ascii_uppercase + string.ascii_lowercase
MANY = "#"
FREE = "."
OTHERS = "\0others"
"""Stands for requests without a letter; none has such a name."""
OTHERS_STYLE = "black on white"
# Neighbours in the list look different, also for most who see colours differently.
COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "bright_cyan", "bright_yellow")
FREE_STYLE = "dim"
MIN_CELLS = 8


class Cell(NamedTuple):
    """One character: who has most of the blocks it stands for; None if they are free."""

    request_id: str | None


class Mark(NamedTuple):
    """How a request looks, with colour and without."""

    letter: str
    style: str


def mark_of(position: int) -> Mark:
    """Give the request at `position` its letter and colour; both repeat when there are many."""
    letter = LETTERS[position] if position < len(LETTERS) else MANY
    return Mark(letter, f"black on {COLOURS[position % len(COLOURS)]}")


def cells_of(total: int, held: Sequence[tuple[str, int]], cells: int) -> list[Cell]:
    """Draw one instance's blocks as at most `cells` characters.

    Args:
        total: Blocks of its pool.
        held: Request and number of blocks, in the order to draw; the rest is free.
        cells: Most characters, at least 1.
    """
    owners: list[str | None] = [name for name, count in held for _ in range(count)]
    owners += [None] * (total - len(owners))
    each = blocks_per_cell(total, cells)
    groups = [owners[first : first + each] for first in range(0, total, each)]
    return [Cell(collections.Counter(group).most_common(1)[0][0]) for group in groups]


def blocks_per_cell(total: int, cells: int) -> int:
    """Tell how many blocks a character must stand for."""
    return max(1, -(-total // cells))


def draw_pool(view: PoolView, request_ids: Sequence[str], width: int) -> Text:
    """Draw all instances, one line each, and who is who below.

    Args:
        view: Where blocks are.
        request_ids: Requests in the order of their letters; the blocks of others share a mark.
        width: Columns of the terminal.
    """
    marks = {name: mark_of(position) for position, name in enumerate(request_ids)}
    marks[OTHERS] = Mark(MANY, OTHERS_STYLE)
    others = [blocks for name, blocks in view.placement.items() if name not in marks]
    names = [f"instance {index}" for index in range(len(view.usage))]
    tails = [
        f"{usage.held:,} of {usage.total:,}" + (f", {usage.lent:,} lent" if usage.lent else "")
        for usage in view.usage
    ]
    room = max(MIN_CELLS, width - len(names[-1]) - max(map(len, tails)) - 4)
    picture = Text()
    for index, usage in enumerate(view.usage):
        held = [(name, view.placement.get(name, {}).get(index, 0)) for name in request_ids]
        held.append((OTHERS, sum(blocks.get(index, 0) for blocks in others)))
        picture.append(f"{names[index]:>{len(names[-1])}} |")
        for cell in cells_of(usage.total, held, room):
            letter, style = (
                Mark(FREE, FREE_STYLE) if cell.request_id is None else marks[cell.request_id]
            )
            picture.append(letter, style)
        picture.append(f"| {tails[index]}\n")
    picture.append_text(_scale(max(usage.total for usage in view.usage), room))
    return picture


def draw_legend(view: PoolView, names: Mapping[str, str], width: int) -> Text:
    """Say for each request that holds blocks: its letter, where they are, and its name.

    Args:
        view: Where blocks are.
        names: What to call each request, in the order of their letters.
        width: Columns of the terminal; longer lines are cut.
    """
    legend = Text()
    for position, (request_id, name) in enumerate(names.items()):
        places = view.placement.get(request_id, {})
        if not any(places.values()):
            continue
        letter, style = mark_of(position)
        total = sum(places.values())
        number = len([count for count in places.values() if count])
        where = f"{total:,} block{'s' * (total > 1)} on {number} instance{'s' * (number > 1)}"
        line = Text.assemble((letter, style), f" {where:<26} {name}\n")
        line.truncate(width, overflow="ellipsis")
        legend.append_text(line)
    return legend


def _scale(total: int, room: int) -> Text:
    each = blocks_per_cell(total, room)
    what = "one character is one block" if each == 1 else f"one character is {each:,} blocks"
    return Text(f"{what}, {FREE} is free\n", FREE_STYLE)
