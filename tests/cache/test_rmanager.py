"""An instance never gives more than it has nor lends more than its cap, and says what changed."""

import pytest

from distkv_jax.cache.charges import Account, Holder
from distkv_jax.cache.messages import Entry, Heartbeat, Loan
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import ConfigError, InvariantError, LendRefused, OutOfBlocks

LOCAL = Holder("local", Account("request-a", 0))
REMOTE = Holder("remote", Account("request-b", 1))
OTHER = Holder("other", Account("request-c", 2))


def make_rmanager(*, num_blocks: int = 8, lend_cap: int = 3) -> RManager:
    return RManager(0, num_blocks, lend_cap)


@pytest.mark.parametrize("lend_cap", [-1, 9])
def test_lend_cap_is_within_the_pool(lend_cap: int):
    with pytest.raises(
        ConfigError, match=f"^lend_cap={lend_cap} must be between 0 and num_blocks=8$"
    ):
        make_rmanager(lend_cap=lend_cap)


def test_local_sequence_may_take_every_block():
    rmanager = make_rmanager(lend_cap=0)

    assert rmanager.allocate(LOCAL, 8) == tuple(range(8))
    assert rmanager.lent == {}
    rmanager.check()


def test_local_refusal_names_the_numbers_and_takes_nothing():
    rmanager = make_rmanager()
    rmanager.allocate(REMOTE, 3)

    with pytest.raises(
        OutOfBlocks, match="^needed 6 blocks, 5 free of 8 on instance 0$"
    ) as refused:
        rmanager.allocate(LOCAL, 6)

    assert not isinstance(refused.value, LendRefused)
    assert (refused.value.needed, refused.value.free) == (6, 5)
    assert rmanager.num_free == 5
    rmanager.check()


def test_lend_over_the_cap_is_refused_and_takes_nothing():
    rmanager = make_rmanager()
    rmanager.allocate(REMOTE, 2)

    with pytest.raises(
        LendRefused,
        match="^instance 0 lends no 2 blocks to instance 2: 6 free of 8, 2 lent, lend cap 3$",
    ) as refused:
        rmanager.allocate(OTHER, 2)

    assert (refused.value.needed, refused.value.free) == (2, 1)
    assert rmanager.lent == {1: 2}
    rmanager.check()


def test_lend_of_more_than_is_free_is_refused():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 7)

    with pytest.raises(
        LendRefused,
        match="^instance 0 lends no 2 blocks to instance 1: 1 free of 8, 0 lent, lend cap 3$",
    ) as refused:
        rmanager.allocate(REMOTE, 2)

    assert refused.value.free == 1


def test_lendable_is_all_free_blocks_at_home_and_what_the_cap_leaves_elsewhere():
    rmanager = make_rmanager()
    assert (rmanager.lendable(0), rmanager.lendable(1)) == (8, 3)

    rmanager.allocate(REMOTE, 2)
    assert (rmanager.lendable(0), rmanager.lendable(1)) == (6, 1)
    rmanager.allocate(LOCAL, 6)
    assert (rmanager.lendable(0), rmanager.lendable(1)) == (0, 0)


def test_passed_on_charge_may_exceed_the_cap_but_nothing_more_is_lent():
    rmanager = make_rmanager(lend_cap=1)
    blocks = rmanager.allocate(LOCAL, 3)
    rmanager.share(REMOTE, blocks)

    rmanager.release(LOCAL, blocks)

    assert rmanager.lent == {1: 3}
    assert rmanager.num_lendable == 0
    rmanager.check()


def test_block_is_free_when_its_last_holder_releases_it():
    rmanager = make_rmanager()
    blocks = rmanager.allocate(LOCAL, 2)
    rmanager.share(REMOTE, blocks[:1])

    rmanager.release(LOCAL, blocks)
    assert rmanager.num_free == 7
    rmanager.release_all(REMOTE)
    rmanager.release_all(REMOTE)
    assert rmanager.num_free == 8
    assert list(rmanager.holders) == []
    rmanager.check()


def test_sequence_cannot_share_what_it_holds():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 2)

    with pytest.raises(
        InvariantError, match=r"^sequence local holds blocks \[1\] of instance 0 already$"
    ):
        rmanager.share(LOCAL, [1])

    rmanager.check()


def test_free_block_cannot_be_shared():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 1)

    with pytest.raises(InvariantError, match="^block 1 is not held$"):
        rmanager.share(REMOTE, [0, 1])

    rmanager.release_all(LOCAL)
    assert rmanager.num_free == 8
    rmanager.check()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([0, 2], r"sequence local does not hold blocks \[2\] of instance 0"),
        ([0, 7], r"sequence local does not hold blocks \[7\] of instance 0"),
        ([0, 0], r"blocks \[0, 0\] of instance 0 name one twice"),
    ],
)
def test_wrong_release_releases_nothing(blocks: list[int], message: str):
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 2)
    rmanager.allocate(REMOTE, 1)

    with pytest.raises(InvariantError, match=f"^{message}$"):
        rmanager.release(LOCAL, blocks)

    assert rmanager.num_free == 5
    rmanager.check()


def test_heartbeat_has_totals_and_changed_entries_only():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 2)
    rmanager.allocate(REMOTE, 1)
    assert rmanager.heartbeat() == Heartbeat(
        instance=0,
        number=1,
        is_full=False,
        num_free=5,
        num_held=3,
        num_lendable=2,
        loans=(Loan(debtor=1, num_blocks=1),),
        entries=(
            Entry(request_id="request-a", home=0, num_blocks=2),
            Entry(request_id="request-b", home=1, num_blocks=1),
        ),
    )
    assert not rmanager.has_changed

    rmanager.release_all(REMOTE)
    assert rmanager.has_changed
    second = rmanager.heartbeat()

    assert (second.number, second.num_free, second.loans) == (2, 6, ())
    assert second.entries == (Entry(request_id="request-b", home=1, num_blocks=0),)


def test_full_heartbeat_has_every_entry_and_none_that_is_gone():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 2)
    rmanager.allocate(REMOTE, 1)
    rmanager.heartbeat()
    rmanager.release_all(REMOTE)

    full = rmanager.heartbeat(is_full=True)

    assert full.entries == (Entry(request_id="request-a", home=0, num_blocks=2),)
    assert rmanager.heartbeat().entries == ()


def test_loans_are_listed_by_debtor():
    rmanager = make_rmanager()
    rmanager.allocate(OTHER, 1)
    rmanager.allocate(REMOTE, 2)

    assert rmanager.heartbeat().loans == (
        Loan(debtor=1, num_blocks=2),
        Loan(debtor=2, num_blocks=1),
    )


def test_check_finds_a_count_without_a_holder():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 2)
    rmanager._pool.share([1])

    with pytest.raises(InvariantError, match="^instance 0: block 1 has count 2 and 1 holders$"):
        rmanager.check()


def test_check_finds_a_broken_pool_and_broken_charges():
    rmanager = make_rmanager()
    rmanager.allocate(LOCAL, 1)
    rmanager._charges.release(LOCAL, [0])
    with pytest.raises(InvariantError, match="^instance 0: holders"):
        rmanager.check()

    rmanager._pool._free.pop()
    with pytest.raises(
        InvariantError, match=r"^1 held \+ 0 reserved \+ 6 free blocks, expected 8$"
    ):
        rmanager.check()
