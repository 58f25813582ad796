"""The ledger is what every instance said last, in whatever order and however often it is heard."""

import itertools

from distkv_jax.cache.ledger import Ledger, Row
from distkv_jax.cache.messages import Heartbeat, Loan


def make_heartbeat(
    instance: int, number: int, num_free: int = 4, *, lent: dict[int, int] | None = None
) -> Heartbeat:
    return Heartbeat(
        instance=instance,
        number=number,
        is_full=False,
        num_free=num_free,
        num_held=8 - num_free,
        num_lendable=num_free,
        loans=tuple(
            Loan(debtor=debtor, num_blocks=count) for debtor, count in (lent or {}).items()
        ),
    )


def test_unheard_instance_has_nothing():
    assert Ledger(2).row(1) == Row(0, 0, 0, 0, {}, 0, 0)
    assert Ledger(2).borrowed(0) == {}


def test_row_is_what_was_said_last():
    ledger = Ledger(2)

    assert ledger.apply(make_heartbeat(1, 1, 5))
    assert ledger.apply(make_heartbeat(1, 2, 3, lent={0: 2}))

    assert ledger.row(1) == Row(number=2, num_blocks=8, num_free=3, num_lendable=3, lent={0: 2})
    assert ledger.row(0) == Row()


def test_duplicates_and_old_heartbeats_change_nothing():
    ledger = Ledger(2)
    ledger.apply(make_heartbeat(1, 2, 3))

    assert not ledger.apply(make_heartbeat(1, 2, 7))
    assert not ledger.apply(make_heartbeat(1, 1, 6))
    assert ledger.row(1).num_free == 3


def test_every_order_with_losses_ends_at_the_newest_heard():
    heartbeats = [make_heartbeat(0, number, number) for number in (1, 2, 3)]
    for length in (1, 2, 3):
        for heard in itertools.permutations(heartbeats, length):
            ledger = Ledger(1)
            for heartbeat in heard:
                ledger.apply(heartbeat)

            assert ledger.row(0).num_free == max(heartbeat.number for heartbeat in heard)


def test_debts_are_the_loans_seen_from_the_other_side():
    ledger = Ledger(3)
    ledger.apply(make_heartbeat(0, 1, lent={1: 2}))
    ledger.apply(make_heartbeat(2, 1, lent={0: 3, 1: 1}))

    assert ledger.borrowed(0) == {2: 3}
    assert ledger.borrowed(1) == {0: 2, 2: 1}
    assert ledger.borrowed(2) == {}
