"""A snapshot puts every held block under one request, home and instance, or under no request."""

from collections.abc import Iterable

from distkv_jax.cache.usage import Usage
from distkv_jax.cache.view import RequestView
from distkv_jax.engine.sampling_params import SamplingParams
from serve.live.recent import Numbered
from serve.live.snapshot import (
    MAX_DEBTS,
    MAX_REQUESTS,
    Activity,
    Debt,
    Gauges,
    Point,
    Reading,
    Snapshot,
    Totals,
    snapshot_of,
)
from serve.observe.record import Record


def numbered(number: int, name: str, caller: str = "") -> Numbered:
    record = Record(
        request_id=name, caller=caller, operation="", params=SamplingParams(), carrier={}
    )
    record.num_prompt_tokens, record.num_tokens = 30, 5
    return Numbered(number, record)


def usage(held: int, lent: int = 0, borrowed: int = 0) -> Usage:
    return Usage(total=10, free=10 - held, held=held, lent=lent, borrowed=borrowed)


def snapshot(
    placed: Iterable[RequestView],
    requests: Iterable[Numbered],
    held: tuple[int, ...],
    lent: tuple[dict[int, int], ...] = (),
) -> Snapshot:
    gauges = Gauges(Totals(), 0, 0, 0.0)
    reading = Reading(gauges, tuple(usage(one) for one in held), lent, tuple(placed))
    return snapshot_of(
        reading, requests, model="m", block_size=8, is_draining=False, now=Point(time=0.0)
    )


def test_blocks_are_under_their_request_and_instance() -> None:
    placed = [RequestView("long", 1, {0: 4, 1: 6}), RequestView("ops/long", 0, {0: 2})]
    requests = [numbered(3, "long"), numbered(4, "long", "ops"), numbered(5, "queued")]
    found = snapshot(placed, requests, (6, 6))

    assert [(row.number, row.caller, row.home, dict(row.blocks)) for row in found.requests] == [
        (3, "", 1, {0: 4, 1: 6}),
        (4, "ops", 0, {0: 2}),
        (5, "", None, {}),
    ]
    assert [row.activity for row in found.requests] == [Activity.RUNNING] * 2 + [Activity.WAITING]
    assert [one.num_other for one in found.instances] == [0, 0]


def test_samples_with_several_homes_are_one_request_at_home_where_most_is_charged() -> None:
    placed = [RequestView("r", 0, {0: 1, 1: 2}), RequestView("r", 1, {1: 4})]
    (row,) = snapshot(placed, [numbered(0, "r")], (1, 6)).requests

    assert (row.home, dict(row.blocks)) == (1, {0: 1, 1: 6})


def test_blocks_of_requests_that_nobody_knows_are_others() -> None:
    placed = [RequestView("r", 0, {0: 1}), RequestView("in-process", 1, {0: 2, 1: 3})]
    found = snapshot(placed, [numbered(0, "r")], (3, 3))

    assert [one.num_other for one in found.instances] == [2, 3]


def test_of_too_many_requests_those_with_blocks_are_listed_in_the_order_they_came() -> None:
    count = MAX_REQUESTS + 40
    requests = [numbered(number, f"r{number}") for number in range(count)]
    placed = [RequestView(f"r{number}", 0, {0: 1}) for number in range(50, count)]
    found = snapshot(placed, requests, (count - 50,))

    shown = [row.number for row in found.requests]
    assert shown == [*range(MAX_REQUESTS - (count - 50)), *range(50, count)]
    assert found.num_hidden == 40
    assert found.instances[0].num_other == 0


def test_the_largest_debts_are_listed_and_all_are_counted() -> None:
    lent = ({1: 2, 2: 7}, {0: 2}, {number: 1 for number in range(3, 203)})
    found = snapshot([], [], (9, 2, 0), lent)

    assert found.debts[:4] == (Debt(0, 2, 7), Debt(0, 1, 2), Debt(1, 0, 2), Debt(2, 3, 1))
    assert len(found.debts) == MAX_DEBTS
    assert found.num_debts == 203
