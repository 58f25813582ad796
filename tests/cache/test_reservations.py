"""Reservations live until they are ended or their lease does, and account for every kept block."""

import pytest

from distkv_jax.cache.messages import ReservationId
from distkv_jax.cache.reservations import Reservation, Reservations
from distkv_jax.errors import InvariantError

ONE, TWO = ReservationId(1, 1), ReservationId(2, 1)


def make_reservations() -> Reservations:
    """Blocks 0 and 1 kept for instance 1 to step 3, block 5 for instance 2 to step 5."""
    reservations = Reservations()
    reservations.add(ONE, Reservation("r", 1, 2, 3, (0, 1)))
    reservations.add(TWO, Reservation("s", 2, 1, 5, (5,)))
    return reservations


def test_reserved_blocks_are_counted_but_for_one_home():
    reservations = make_reservations()

    assert [reservations.num_reserved(except_home=home) for home in (0, 1, 2)] == [3, 1, 2]
    reservations.check([0, 1, 5])


def test_end_gives_the_reservation_once_and_remembers_how_it_ended():
    reservations = make_reservations()

    ended = reservations.end(ONE, until=3, is_committed=True)
    assert ended is not None and ended.blocks == (0, 1)
    assert reservations.is_committed(ONE)
    assert reservations.end(ONE, until=3, is_committed=False) is None
    assert not reservations.is_committed(ONE)
    reservations.check([5])


def test_ended_reservation_is_forgotten_with_its_lease():
    reservations = make_reservations()
    reservations.end(ONE, until=3, is_committed=False)

    reservations.expire(3)
    assert reservations.is_ended(ONE)
    reservations.expire(4)
    assert not reservations.is_ended(ONE)


def test_expired_are_given_once():
    reservations = make_reservations()

    assert [expired.blocks for expired in reservations.expire(4)] == [(0, 1)]
    assert reservations.expire(4) == []
    assert reservations.live(ONE) is None
    reservations.check([5])


def test_check_finds_blocks_kept_by_nobody_twice_or_too_long():
    reservations = make_reservations()

    for reserved in ([0, 1], [0, 1, 5, 6], [0, 1, 1, 5]):
        with pytest.raises(InvariantError, match="^blocks .* reserved, expected .*$"):
            reservations.check(reserved)
    reservations.step = 4
    with pytest.raises(InvariantError, match="lives at step 4, leased to 3$"):
        reservations.check([0, 1, 5])
    reservations.step = 3
    reservations._by_home[1] = 1
    with pytest.raises(InvariantError, match="reserved by home, expected 3$"):
        reservations.check([0, 1, 5])
