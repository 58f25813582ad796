"""Latencies are those of the last seconds, within a percent, however many tokens there were."""

import random

import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from serve.live.recent import WINDOW, Durations, Recent
from serve.observe.record import Record


def a_record() -> Record:
    return Record(request_id="r", caller="", operation="", params=SamplingParams(), carrier={})


def test_percentiles_are_within_a_percent() -> None:
    durations, random_of = Durations(), random.Random(7)
    values = sorted(random_of.lognormvariate(-4, 1) for _ in range(5000))
    for value in values:
        durations.add(value)

    latency = durations.latency()
    assert latency is not None
    assert latency.median_s == pytest.approx(values[2499], rel=0.0101)
    assert latency.p99_s == pytest.approx(values[4949], rel=0.0101)


@pytest.mark.parametrize("count", [1, 2, 99, 100])
def test_one_slow_token_of_few_is_the_p99(count: int) -> None:
    durations = Durations()
    for _ in range(count - 1):
        durations.add(0.01)
    durations.add(1.0)

    latency = durations.latency()
    assert latency is not None
    assert latency.p99_s == pytest.approx(1.0 if count < 100 else 0.01, rel=0.01)


def test_no_time_at_all_can_be_counted() -> None:
    durations = Durations()
    durations.add(0.0)

    assert durations.latency() == pytest.approx((1e-6, 1e-6), rel=0.01)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    durations = Durations()
    durations.add(0.5)
    for _ in range(WINDOW - 1):
        durations.rotate()
    assert durations.latency() is not None

    durations.rotate()
    assert durations.latency() is None


def test_requests_under_way_are_numbered_as_they_came() -> None:
    recent, records = Recent(), [a_record() for _ in range(3)]
    for record in records:
        recent.on_begin(record)
    recent.on_end(records[1])
    recent.on_begin(records[1])

    under_way = sorted(recent.under_way().values())
    assert [one.number for one in under_way] == [0, 2, 3]
    assert [one.record for one in under_way] == [records[0], records[2], records[1]]


def test_first_tokens_and_gaps_are_apart() -> None:
    recent, record = Recent(), a_record()
    recent.on_begin(record)
    record.first_token = record.arrival + 2.0
    recent.on_first_token(record)
    recent.on_gap(record, 0.02)

    first, gap = recent.first_tokens.latency(), recent.gaps.latency()
    assert first is not None and first.median_s == pytest.approx(2.0, rel=0.01)
    assert gap is not None and gap.median_s == pytest.approx(0.02, rel=0.01)
    recent.rotate()
    assert recent.gaps.latency() == gap
