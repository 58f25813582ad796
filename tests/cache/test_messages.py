"""Messages are plain values: equal by content, frozen, printable, complete without a wire."""

import dataclasses

import pytest

from distkv_jax.cache.messages import (
    Commit,
    Committed,
    Entry,
    Granted,
    Heartbeat,
    Loan,
    MoveKVCache,
    Refused,
    Release,
    Released,
    Reply,
    Request,
    ReservationId,
    TryMoveKVCache,
)

NAME = ReservationId(0, 1)


def make_heartbeat() -> Heartbeat:
    return Heartbeat(
        instance=1,
        number=3,
        is_full=False,
        num_free=2,
        num_held=6,
        num_lendable=1,
        loans=(Loan(debtor=0, num_blocks=2), Loan(debtor=2, num_blocks=1)),
        entries=(Entry(request_id="a", home=0, num_blocks=2),),
    )


def test_heartbeat_totals_follow_from_its_fields():
    assert make_heartbeat().num_blocks == 8
    assert make_heartbeat().num_lent == 3


def test_equal_messages_are_equal_and_print_what_they_say():
    assert make_heartbeat() == make_heartbeat()
    assert "Entry(request_id='a', home=0, num_blocks=2)" in str(make_heartbeat())


@pytest.mark.parametrize(
    "message",
    [
        make_heartbeat(),
        *make_heartbeat().loans,
        MoveKVCache(request_id="a", num_blocks=1, source=0, destination=1),
        TryMoveKVCache(reservation=NAME, request_id="a", home=0, num_blocks=1, until=2),
        Commit(reservation=NAME, arrivals=()),
        Release(reservation=NAME, until=2),
        Granted(reservation=NAME, blocks=()),
        Committed(reservation=NAME),
        Released(reservation=NAME),
        Refused(reservation=NAME, reason="full", num_free=0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_are_frozen(message: Heartbeat | Loan | MoveKVCache | Request | Reply):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(message)[0].name, 7)
