"""Debt circles are found and cancelled: it ends, none is left, nobody's net space changes."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distkv_jax.cache.dgfm import Circle, debt_circles

Debts = list[dict[int, int]]


@st.composite
def debt_graphs(draw: st.DrawFn) -> Debts:
    num_instances = draw(st.integers(0, 9))
    edges = draw(
        st.dictionaries(
            st.tuples(st.integers(0, 8), st.integers(0, 8)), st.integers(1, 9), max_size=40
        )
    )
    lent: Debts = [{} for _ in range(num_instances)]
    for (creditor, debtor), count in edges.items():
        if creditor != debtor and max(creditor, debtor) < num_instances:
            lent[creditor][debtor] = count
    return lent


def net_space(lent: Debts) -> list[int]:
    """What each instance lent less what it borrowed."""
    borrowed = [sum(row.get(debtor, 0) for row in lent) for debtor in range(len(lent))]
    return [sum(row.values()) - owed for row, owed in zip(lent, borrowed, strict=True)]


def apply(lent: Debts, circles: Sequence[Circle]) -> Debts:
    """Cancel circles one after the other; no debt may go below zero."""
    left = [dict(row) for row in lent]
    for circle in circles:
        debtors = [*circle.instances[1:], circle.instances[0]]
        bottleneck = min(left[c][d] for c, d in zip(circle.instances, debtors, strict=True))
        assert circle.num_blocks == bottleneck > 0
        for creditor, debtor in zip(circle.instances, debtors, strict=True):
            left[creditor][debtor] -= circle.num_blocks
            if not left[creditor][debtor]:
                del left[creditor][debtor]
    return left


def has_circle(lent: Debts) -> bool:
    """Whether instances are left when those without a debtor go, again and again."""
    left = {creditor: set(row) for creditor, row in enumerate(lent)}
    while ends := [creditor for creditor, debtors in left.items() if not debtors & left.keys()]:
        for end in ends:
            del left[end]
    return bool(left)


@given(debt_graphs())
@settings(max_examples=300, deadline=None)
def test_no_circle_is_left_and_no_net_space_changes(lent: Debts):
    circles = debt_circles(lent)
    left = apply(lent, circles)

    assert not has_circle(left)
    assert net_space(left) == net_space(lent)
    assert all(len(set(circle.instances)) == len(circle.instances) > 1 for circle in circles)


@given(debt_graphs())
@settings(max_examples=100, deadline=None)
def test_each_circle_ends_a_debt_and_moves_its_length_times_its_bottleneck(lent: Debts):
    circles = debt_circles(lent)
    left = apply(lent, circles)

    cancelled = sum(map(sum, (row.values() for row in lent))) - sum(
        map(sum, (row.values() for row in left))
    )
    assert cancelled == sum(len(circle.instances) * circle.num_blocks for circle in circles)
    num_debts = sum(map(len, lent))
    assert len(circles) <= num_debts - sum(map(len, left)) or not circles


@pytest.mark.parametrize(
    ("lent", "circles"),
    [
        ([{1: 3}, {0: 2}], [Circle((0, 1), 2)]),
        ([{1: 3}, {2: 4}, {0: 5}], [Circle((0, 1, 2), 3)]),
        ([{1: 3}, {2: 4}, {}], []),
        # The way back by 2 → 1 is shorter than by 2 → 0.
        ([{1: 1}, {2: 2}, {0: 1, 1: 1}], [Circle((1, 2), 1), Circle((0, 1, 2), 1)]),
    ],
)
def test_circles_of_small_graphs(lent: Debts, circles: list[Circle]):
    assert debt_circles(lent) == tuple(circles)


def test_debts_given_stay_as_they_were():
    lent = [{1: 3}, {0: 2}]

    debt_circles(lent)

    assert lent == [{1: 3}, {0: 2}]


def test_shortest_way_back_is_taken():
    # 0 → 1 → 2 → 3 → 1 and → 0: back to 1 first.
    circles = debt_circles([{1: 2}, {2: 2}, {3: 2}, {0: 1, 1: 1}])

    assert [circle.instances for circle in circles] == [(1, 2, 3), (0, 1, 2, 3)]
