"""The picture shows each instance's blocks by request, to scale, with and without colour."""

import io

import pytest
from rich.console import Console

from distkv_jax.cache.coordinator import Usage
from distkv_jax.cli.picture import LETTERS, cells_of, draw_legend, draw_pool, mark_of
from distkv_jax.llm import PoolView


def usage(total: int, held: int, lent: int = 0) -> Usage:
    return Usage(total=total, free=total - held, held=held, lent=lent, borrowed=0)


def view() -> PoolView:
    """Instance 0 is full of the first request, which has more on 1, as the second has."""
    return PoolView(
        [usage(8, 8), usage(8, 5, lent=3), usage(8, 0)],
        {"long": {0: 8, 1: 3}, "short": {1: 2}},
    )


def printed(picture: object, *, colour: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=file, width=200, force_terminal=colour, color_system=system)
    console.print(picture, end="")
    return file.getvalue()


def test_picture_has_a_line_for_each_instance():
    lines = printed(draw_pool(view(), ["long", "short"], 80)).splitlines()

    assert lines == [
        "instance 0 |AAAAAAAA| 8 of 8",
        "instance 1 |AAABB...| 5 of 8, 3 lent",
        "instance 2 |........| 0 of 8",
        "one character is one block, . is free",
    ]


def test_legend_says_who_is_where():
    lines = printed(draw_legend(view(), {"long": "...a tail", "none": "x", "short": "b"}, 80))

    assert lines.splitlines() == [
        "A 11 blocks on 2 instances   ...a tail",
        "C 2 blocks on 1 instance     b",
    ]


def test_colours_are_used_on_a_terminal():
    assert "\x1b[" in printed(draw_pool(view(), ["long", "short"], 80), colour=True)
    assert "\x1b[" not in printed(draw_pool(view(), ["long", "short"], 80))


def test_large_pools_are_drawn_to_scale():
    large = PoolView([usage(1000, 750, lent=250)], {"a": {0: 500}, "b": {0: 250}})
    pool, scale = printed(draw_pool(large, ["a", "b"], 80)).splitlines()
    cells = pool.split("|")[1]

    assert len(pool) <= 80
    assert scale == f"one character is {-(-1000 // len(cells))} blocks, . is free"
    assert abs(cells.count("A") - len(cells) / 2) <= 1
    assert abs(cells.count("B") - len(cells) / 4) <= 1
    assert abs(cells.count(".") - len(cells) / 4) <= 1


@pytest.mark.parametrize("cells", [1, 3, 7, 8, 100])
def test_characters_never_exceed_the_room(cells: int):
    assert 1 <= len(cells_of(7, [("a", 3)], cells)) <= cells


def test_blocks_of_requests_without_a_letter_are_not_shown_as_free():
    lines = printed(draw_pool(view(), ["short"], 80)).splitlines()

    assert lines[0] == "instance 0 |########| 8 of 8"
    assert lines[1] == "instance 1 |AA###...| 5 of 8, 3 lent"


def test_requests_past_the_letters_share_a_mark():
    assert [mark_of(position).letter for position in range(len(LETTERS))] == list(LETTERS)
    assert mark_of(len(LETTERS)).letter == mark_of(500).letter == "#"
