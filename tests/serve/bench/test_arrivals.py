"""Requests are sent at the rate and as unevenly as asked for."""

import math

import numpy as np
import pytest

from serve.bench.arrivals import arrivals

COUNT = 20_000


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape_does(burstiness: float) -> None:
    times = arrivals(COUNT, 50.0, burstiness=burstiness, seed=3)
    gaps = np.diff([0.0, *times])

    assert times == sorted(times)
    # The last one is put where the mean rate says.
    assert times[-1] == pytest.approx(COUNT / 50.0)
    # Five standard errors: the estimate's variance is (k + 1) / (2 k² n) for a gamma of shape k.
    error = math.sqrt((burstiness + 1) / (2 * burstiness**2 * COUNT))
    variation = np.std(gaps) / np.mean(gaps)
    assert variation == pytest.approx(1 / math.sqrt(burstiness), abs=5 * error)


def test_the_seed_decides() -> None:
    assert arrivals(5, 2.0, seed=1) == arrivals(5, 2.0, seed=1)
    assert arrivals(5, 2.0, seed=1) != arrivals(5, 2.0, seed=2)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrivals(3, math.inf) == [0.0, 0.0, 0.0]


def test_an_infinite_burstiness_spaces_evenly() -> None:
    assert arrivals(4, 2.0, burstiness=math.inf) == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_gaps_too_small_for_floats_are_still_times() -> None:
    times = arrivals(4, 2.0, burstiness=1e-9)

    assert times == sorted(times)
    assert times[-1] == pytest.approx(2.0)
