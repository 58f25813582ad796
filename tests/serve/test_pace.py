"""Rounds keep the distance that was asked for, and more of it the more they cost."""

import itertools

import pytest

import serve.pace
from serve.pace import LONGEST_S, SHARE, Pace


@pytest.mark.parametrize(
    ("cost_s", "expected_s"),
    [(0.0, 0.01), (0.0005, 0.01), (0.005, 0.005 / SHARE), (0.5, LONGEST_S)],
)
def test_a_round_may_take_its_share(
    cost_s: float, expected_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(serve.pace.time, "thread_time", lambda: next(clock) * cost_s)
    pace = Pace(0.01)
    distances = [pace.next_round() for _ in range(50)]

    assert distances[-1] == pytest.approx(expected_s, rel=1e-3)


def test_what_was_asked_for_may_be_longer() -> None:
    assert Pace(0.5).next_round() == 0.5
