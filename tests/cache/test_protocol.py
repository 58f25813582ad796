"""A destination keeps blocks first come first served, once per reservation, to its lease's end."""

import itertools

import pytest

from distkv_jax.cache.charges import Account, Holder
from distkv_jax.cache.messages import (
    Arrival,
    BlockEpoch,
    Commit,
    Committed,
    Granted,
    Refused,
    Release,
    Released,
    Request,
    ReservationId,
    TryMoveKVCache,
)
from distkv_jax.cache.protocol import answer
from distkv_jax.cache.rmanager import RManager

FIRST, SECOND = ReservationId(1, 1), ReservationId(2, 1)
GUEST = Holder("guest", Account("r", 1))
HEIR = Holder("heir", Account("s", 0))


def make_rmanager(*, lend_cap: int = 4) -> RManager:
    """Instance 0 with 6 blocks."""
    return RManager(0, 6, lend_cap)


def try_move(
    name: ReservationId = FIRST, count: int = 2, *, home: int = 1, until: int = 3
) -> TryMoveKVCache:
    return TryMoveKVCache(
        reservation=name, request_id="r", home=home, num_blocks=count, until=until
    )


def commit(*blocks: int, name: ReservationId = FIRST) -> Commit:
    arrivals = tuple(Arrival(block, (GUEST, HEIR)) for block in blocks)
    return Commit(reservation=name, arrivals=arrivals)


def release(*blocks: int, name: ReservationId = FIRST) -> Release:
    return Release(reservation=name, until=3, blocks=blocks)


def state(rmanager: RManager) -> tuple[int, int, dict[Account, int]]:
    rmanager.check()
    return rmanager.num_free, rmanager.num_reserved, rmanager.accounts()


def test_granted_blocks_are_kept_and_free_for_nobody_else():
    rmanager = make_rmanager()

    assert answer(rmanager, try_move()) == Granted(
        reservation=FIRST, blocks=(BlockEpoch(0, 0), BlockEpoch(1, 0))
    )
    assert state(rmanager) == (4, 2, {})
    assert rmanager.allocate(HEIR, 4) == (2, 3, 4, 5)


def test_first_come_is_first_served_and_the_cap_counts_what_is_reserved():
    rmanager = make_rmanager(lend_cap=3)
    answer(rmanager, try_move())

    assert answer(rmanager, try_move(SECOND, 2, home=2)) == Refused(
        reservation=SECOND,
        reason="instance 0 has 1 blocks for instance 2, 2 wanted",
        num_free=4,
    )
    assert isinstance(answer(rmanager, try_move(SECOND, 1, home=2)), Granted)
    assert rmanager.num_lendable == 0


def test_blocks_that_come_home_need_no_cap():
    rmanager = make_rmanager(lend_cap=0)

    assert isinstance(answer(rmanager, try_move(count=6, home=0)), Granted)
    assert rmanager.num_lendable == 0


@pytest.mark.parametrize("count", [0, -1, 7])
def test_impossible_count_is_refused(count: int):
    rmanager = make_rmanager(lend_cap=6)

    assert isinstance(answer(rmanager, try_move(count=count)), Refused)
    assert state(rmanager) == (6, 0, {})


def test_committed_blocks_are_held_and_the_rest_is_free():
    rmanager = make_rmanager()
    answer(rmanager, try_move(count=3))

    assert answer(rmanager, commit(1)) == Committed(reservation=FIRST)
    assert state(rmanager) == (5, 0, {GUEST.account: 1})
    assert rmanager.line(1) == (GUEST, HEIR)
    assert rmanager.epoch(1) == 1


def test_lease_ends_after_its_last_step_and_a_late_commit_does_no_harm():
    rmanager = make_rmanager()
    answer(rmanager, try_move(until=3))

    rmanager.tick(3)
    assert state(rmanager) == (4, 2, {})
    rmanager.tick(4)
    assert state(rmanager) == (6, 0, {})
    mine = rmanager.allocate(HEIR, 2)
    assert answer(rmanager, commit(*mine)) == Refused(
        reservation=FIRST, reason="the reservation has ended", num_free=4
    )
    assert state(rmanager) == (4, 0, {HEIR.account: 2})


def test_request_after_its_own_lease_is_refused():
    rmanager = make_rmanager()
    rmanager.tick(4)

    assert isinstance(answer(rmanager, try_move(until=3)), Refused)
    assert isinstance(answer(rmanager, try_move(until=4)), Granted)


def test_older_step_does_not_turn_time_back():
    rmanager = make_rmanager()
    rmanager.tick(4)
    rmanager.tick(2)

    assert isinstance(answer(rmanager, try_move(until=3)), Refused)


@pytest.mark.parametrize(
    "history",
    [
        [try_move()],
        [try_move(), commit(0)],
        [try_move(), release()],
        [try_move(), commit(0, 1), release(0, 1)],
        [try_move(SECOND), try_move(), commit(2)],
    ],
)
def test_every_request_twice_has_the_effect_of_one(history: list[Request]):
    once, twice = make_rmanager(), make_rmanager()
    for request in history:
        assert answer(once, request) == answer(twice, request) == answer(twice, request)

    assert state(once) == state(twice)


@pytest.mark.parametrize(
    "history", list(itertools.permutations([try_move(), commit(0), release(0)]))
)
def test_whatever_the_order_a_release_leaves_nothing(history: tuple[Request, ...]):
    rmanager = make_rmanager()
    for request in history:
        answer(rmanager, request)

    assert state(rmanager) == (6, 0, {})


def test_release_of_an_expired_reservation_spares_who_took_the_blocks_since():
    rmanager = make_rmanager()
    answer(rmanager, try_move())
    rmanager.tick(9)
    mine = rmanager.allocate(GUEST, 2)

    assert answer(rmanager, release(*mine)) == Released(reservation=FIRST)
    assert state(rmanager) == (4, 0, {GUEST.account: 2})


def test_commit_is_undone_however_late_but_not_once_the_block_changed_hands():
    rmanager = make_rmanager()
    answer(rmanager, try_move())
    answer(rmanager, commit(0, 1))
    rmanager.release(GUEST, [1])
    rmanager.release(HEIR, [1])
    assert rmanager.allocate(GUEST, 1) == (1,)
    rmanager.tick(100)

    answer(rmanager, release(0, 1))

    assert state(rmanager) == (5, 0, {GUEST.account: 1})
    assert rmanager.line(1) == (GUEST,)


def test_commit_of_what_was_not_reserved_is_refused():
    rmanager = make_rmanager()
    answer(rmanager, try_move(home=2))

    for wrong in (commit(2), commit(0)):  # not kept; charged to another home
        assert isinstance(answer(rmanager, wrong), Refused)
    assert state(rmanager) == (4, 2, {})


def test_heartbeat_tells_of_reservations():
    rmanager = make_rmanager()
    rmanager.heartbeat()

    answer(rmanager, try_move())
    assert rmanager.has_changed
    heartbeat = rmanager.heartbeat()
    assert (heartbeat.num_free, heartbeat.num_reserved, heartbeat.num_blocks) == (4, 2, 6)
    rmanager.tick(4)
    assert rmanager.has_changed
