"""Every held block is charged once: to its first holder, then to the next in line."""

import pytest

from distkv_jax.cache.charges import Account, Charges, Holder
from distkv_jax.errors import InvariantError

LOCAL = Holder("local", Account("request-a", 0))
REMOTE = Holder("remote", Account("request-b", 1))
OTHER = Holder("other", Account("request-c", 2))


def make_shared() -> Charges:
    """Block 5 of instance 0, held by a local sequence, then by two others."""
    charges = Charges(instance=0, num_blocks=8)
    charges.hold(LOCAL, [5])
    charges.share(REMOTE, [5])
    charges.share(OTHER, [5])
    return charges


def test_shared_block_is_charged_to_its_first_holder_only():
    charges = make_shared()

    assert charges.accounts() == {LOCAL.account: 1}
    assert charges.lent == {}


def test_charge_passes_on_in_the_order_of_holding():
    charges = make_shared()

    charges.release(LOCAL, [5])
    assert charges.accounts() == {REMOTE.account: 1}
    assert (charges.lent, charges.num_lent) == ({1: 1}, 1)
    charges.release(REMOTE, [5])
    assert charges.accounts() == {OTHER.account: 1}
    assert (charges.lent, charges.num_lent) == ({2: 1}, 1)
    charges.release(OTHER, [5])
    assert charges.accounts() == {}
    assert (charges.lent, charges.num_lent) == ({}, 0)


@pytest.mark.parametrize(("early", "next_in_line"), [(REMOTE, OTHER), (OTHER, REMOTE)])
def test_heir_that_releases_first_is_passed_over(early: Holder, next_in_line: Holder):
    charges = make_shared()

    charges.release(early, [5])
    assert charges.accounts() == {LOCAL.account: 1}
    charges.release(LOCAL, [5])
    assert charges.accounts() == {next_in_line.account: 1}
    charges.check([(next_in_line, [5])])


def test_samples_of_one_request_share_an_account():
    charges = Charges(instance=0, num_blocks=8)
    second = Holder("second", REMOTE.account)
    charges.hold(REMOTE, [0, 1, 2])
    charges.share(second, [0, 1])

    charges.release(REMOTE, [0, 1, 2])

    assert charges.accounts() == {REMOTE.account: 2}
    assert charges.lent == {1: 2}


def test_changes_are_the_accounts_touched_since_they_were_forgotten():
    charges = make_shared()
    charges.forget_changes()
    assert not charges.has_changed

    charges.release(REMOTE, [5])
    assert not charges.has_changed
    charges.release(LOCAL, [5])

    assert charges.changed_accounts() == {LOCAL.account: 0, OTHER.account: 1}


def test_check_finds_a_holder_without_a_block_and_a_block_without_a_holder():
    charges = make_shared()

    charges.check([(LOCAL, [5]), (REMOTE, [5]), (OTHER, [5])])
    with pytest.raises(InvariantError, match="^instance 0: holders .*other.* without and .* with"):
        charges.check([(LOCAL, [5]), (REMOTE, [5])])
    with pytest.raises(InvariantError, match="^instance 0: holders .* without and .*6.* with"):
        charges.check([(LOCAL, [5]), (REMOTE, [5]), (OTHER, [5, 6])])


def test_check_finds_heirs_of_a_free_block():
    charges = Charges(instance=0, num_blocks=8)
    charges.share(OTHER, [3])

    with pytest.raises(InvariantError, match="^instance 0: block 3 has heirs .* and no charged"):
        charges.check([])


def test_check_finds_wrong_sums():
    charges = Charges(instance=0, num_blocks=8)
    charges.hold(REMOTE, [0, 1])

    charges.num_lent = 1
    with pytest.raises(InvariantError, match="^instance 0: 1 lent {1: 2}, expected {1: 2}$"):
        charges.check([(REMOTE, [0, 1])])
    charges.num_lent = 2
    charges._lent = {2: 2}
    with pytest.raises(InvariantError, match="^instance 0: 2 lent {2: 2}, expected {1: 2}$"):
        charges.check([(REMOTE, [0, 1])])
    charges._accounts[REMOTE.account] = 1
    with pytest.raises(InvariantError, match="^instance 0: accounts .*: 1}, expected .*: 2}$"):
        charges.check([(REMOTE, [0, 1])])
