"""Sequences get blocks anywhere they are to be had, all or nothing, and give all of them back."""

from collections.abc import Callable

import pytest

from distkv_jax.cache import Coordinator, Place, Usage
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import ConfigError, InvariantError, LendRefused, OutOfBlocks


def make_coordinator(
    *, num_instances: int = 3, lend_cap: int | None = None, pooling: bool = True
) -> Coordinator:
    """Instances of 4 blocks; sequence s is of request "r<s>" and at home on instance s."""
    coordinator = Coordinator(num_instances, 4, lend_cap=lend_cap, pooling=pooling)
    for sequence in range(num_instances):
        coordinator.open(sequence, f"r{sequence}", sequence)
    return coordinator


def places_on(instance: int, *indices: int) -> tuple[Place, ...]:
    return tuple(Place(instance, index) for index in indices)


def snapshot(coordinator: Coordinator) -> list[object]:
    """Everything that an operation which fails must leave as it was."""
    return [
        (rmanager.num_free, rmanager.accounts(), set(rmanager.holders))
        for rmanager in coordinator.rmanagers
    ]


def fail_at(
    monkeypatch: pytest.MonkeyPatch, method: str, turn: int, error: Exception
) -> Callable[[], int]:
    """Make the `turn`-th call of an RManager's method raise; tells how many calls there were."""
    calls = 0
    real = getattr(RManager, method)

    def failing(self: RManager, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == turn:
            raise error
        return real(self, *args)

    monkeypatch.setattr(RManager, method, failing)
    return lambda: calls


def test_take_is_exactly_there():
    coordinator = make_coordinator()

    assert coordinator.take(0, 2, instance=1) == places_on(1, 0, 1)
    assert coordinator.take(0, 1, instance=0) == places_on(0, 0)
    assert coordinator.num_free == 9


def test_take_refused_at_home_and_elsewhere_takes_nothing():
    coordinator = make_coordinator(lend_cap=2)

    with pytest.raises(OutOfBlocks, match="^needed 5 blocks, 4 free of 4 on instance 0$"):
        coordinator.take(0, 5, instance=0)
    with pytest.raises(
        LendRefused,
        match="^instance 1 lends no 3 blocks to instance 0: 4 free of 4, 0 lent, lend cap 2$",
    ):
        coordinator.take(0, 3, instance=1)

    assert coordinator.num_free == 12


def test_grow_takes_at_home_first_then_of_the_emptiest():
    coordinator = make_coordinator()
    coordinator.take(1, 2, instance=1)

    assert coordinator.grow(0, 7) == places_on(0, 0, 1, 2, 3) + places_on(2, 0, 1, 2)
    coordinator.beat()
    assert coordinator.grow(0, 2) == (Place(1, 2), Place(1, 3))


def test_grow_asks_first_where_it_is_told_to():
    coordinator = make_coordinator(lend_cap=1)

    assert coordinator.grow(0, 2, first=2) == (Place(2, 0), Place(0, 0))


def test_grow_asks_near_creditors_first():
    coordinator = Coordinator(3, 4, distance=lambda a, b: 1.0 if b == 2 else 2.0)
    coordinator.open("s", "r", 0)

    assert {place.instance for place in coordinator.grow("s", 5)} == {0, 2}


def test_grow_tries_the_next_creditor_when_one_refuses():
    coordinator = make_coordinator()
    coordinator.take(0, 4, instance=0)
    coordinator.take(2, 1, instance=2)
    coordinator.beat()
    coordinator.take(1, 4, instance=1)  # gManager does not know, and proposes instance 1

    assert coordinator.gmanager.propose_creditors(0, 4) == (1,)
    assert coordinator.grow(0, 3) == places_on(2, 1, 2, 3)


def test_grow_that_the_last_view_can_serve_sends_no_heartbeat():
    coordinator = make_coordinator()
    coordinator.beat()

    coordinator.grow(0, 6)

    assert [rmanager.num_beats for rmanager in coordinator.rmanagers] == [1, 1, 1]


def test_grow_looks_again_before_it_gives_up():
    coordinator = make_coordinator()
    coordinator.take(0, 4, instance=0)
    places = coordinator.take(1, 4, instance=1)
    coordinator.take(2, 4, instance=2)
    coordinator.beat()
    coordinator.release(1, places[:1])  # gManager does not know, and proposes nobody

    assert coordinator.gmanager.propose_creditors(0, 1) == ()
    assert coordinator.grow(0, 1) == (Place(1, 0),)


def test_grow_of_too_many_takes_nothing_and_says_what_is_to_be_had():
    coordinator = make_coordinator(lend_cap=1)
    before = snapshot(coordinator)

    with pytest.raises(
        OutOfBlocks,
        match=r"^needed 7 blocks, 6 to be had for instance 0: \[4, 1, 1\] of each instance$",
    ) as refused:
        coordinator.grow(0, 7)

    assert (refused.value.needed, refused.value.free) == (7, 6)
    assert snapshot(coordinator) == before
    coordinator.check()


@pytest.mark.parametrize("error", [OutOfBlocks("gone", needed=1, free=0), InvariantError("boom")])
def test_grow_that_fails_at_any_step_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """Fail the first allocation, then the second, ... until nothing fails."""
    turn, failures = 0, 0
    while True:
        turn += 1
        coordinator = make_coordinator()
        before = snapshot(coordinator)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, "allocate", turn, error)
            try:
                places = coordinator.grow(0, 12)
            except (OutOfBlocks, InvariantError):
                failures += 1
                assert snapshot(coordinator) == before
                coordinator.check()
                continue
            finally:
                coordinator.beat()
                coordinator.check()
            assert len(places) == 12
        break
    # Home is asked twice, to hear what it has; so is instance 1; instance 2 has the rest.
    assert (turn, calls()) == (6, 5)
    assert failures == 5


def test_share_that_fails_at_any_step_shares_nothing(monkeypatch: pytest.MonkeyPatch):
    turn = 0
    while True:
        turn += 1
        coordinator = make_coordinator()
        places = coordinator.grow(0, 12)
        before = snapshot(coordinator)
        with monkeypatch.context() as patch:
            fail_at(patch, "share", turn, InvariantError("boom"))
            try:
                coordinator.share(1, places)
            except InvariantError:
                assert snapshot(coordinator) == before
                coordinator.check()
                continue
        break
    assert turn == 4
    coordinator.close(0)
    assert coordinator.num_free == 0


def test_shared_block_stays_until_its_last_holder_goes():
    coordinator = make_coordinator()
    places = coordinator.grow(0, 5)
    coordinator.share(1, places)

    coordinator.close(0)
    assert coordinator.num_free == 7
    assert coordinator.placement() == {"r1": {0: 4, 1: 1}}
    coordinator.check()
    coordinator.close(1)
    assert coordinator.num_free == 12


def test_charge_of_a_shared_block_passes_to_the_home_of_the_next_holder():
    coordinator = make_coordinator()
    places = coordinator.take(0, 2, instance=0)
    coordinator.share(1, places)
    coordinator.share(2, places)
    assert coordinator.usage()[0] == Usage(total=4, free=2, held=2, lent=0, borrowed=0)

    coordinator.close(0)
    usage = coordinator.usage()
    assert [(row.lent, row.borrowed) for row in usage] == [(2, 0), (0, 2), (0, 0)]

    coordinator.release(1, places[:1])
    usage = coordinator.usage()
    assert [(row.lent, row.borrowed) for row in usage] == [(2, 0), (0, 1), (0, 1)]
    coordinator.check()


def test_release_lets_only_the_named_places_go():
    coordinator = make_coordinator()
    places = coordinator.grow(0, 6)

    coordinator.release(0, [places[0], places[5]])

    assert [rmanager.num_free for rmanager in coordinator.rmanagers] == [1, 3, 4]
    coordinator.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Place(1, 1), r"sequence 0 does not hold blocks \[1\] of instance 1"),
        (Place(1, 0), r"blocks \[0, 0\] of instance 1 name one twice"),
        (Place(3, 0), "instance 3, expected below 3"),
        (Place(-1, 0), "instance -1, expected below 3"),
    ],
)
def test_one_wrong_place_releases_nothing(wrong: Place, message: str):
    coordinator = make_coordinator()
    places = coordinator.grow(0, 5)
    before = snapshot(coordinator)

    with pytest.raises(InvariantError, match=f"^{message}$"):
        coordinator.release(0, [*places, wrong])

    assert snapshot(coordinator) == before


def test_close_gives_everything_back_everywhere():
    coordinator = make_coordinator()
    coordinator.grow(0, 9)

    coordinator.close(0)

    assert coordinator.num_free == 12
    assert coordinator.placement() == {}


def test_closed_sequence_is_not_known_and_may_open_again_elsewhere():
    coordinator = make_coordinator()
    coordinator.close(0)

    for operation in (
        lambda: coordinator.close(0),
        lambda: coordinator.take(0, 1, instance=0),
        lambda: coordinator.grow(0, 1),
        lambda: coordinator.share(0, []),
        lambda: coordinator.release(0, []),
    ):
        with pytest.raises(InvariantError, match="^sequence 0 is not open$"):
            operation()

    coordinator.open(0, "r0", 2)
    assert coordinator.grow(0, 1) == (Place(2, 0),)


def test_open_twice_and_unknown_homes_are_refused():
    coordinator = make_coordinator()

    with pytest.raises(InvariantError, match="^sequence 0 is open already$"):
        coordinator.open(0, "r0", 0)
    for home in (-1, 3):
        with pytest.raises(InvariantError, match=f"^instance {home}, expected below 3$"):
            coordinator.open("new", "r", home)
    with pytest.raises(InvariantError, match="^sequence new is not open$"):
        coordinator.close("new")


def test_pooling_off_lends_nothing():
    coordinator = make_coordinator(pooling=False)

    assert coordinator.capacity(0) == 4
    assert coordinator.lendable(0) == [4, 0, 0]
    assert coordinator.grow(0, 4) == places_on(0, 0, 1, 2, 3)
    with pytest.raises(OutOfBlocks, match=r"^needed 1 blocks, 0 to be had for instance 0: \[0, 0"):
        coordinator.grow(0, 1)
    with pytest.raises(LendRefused, match="lend cap 0$"):
        coordinator.take(0, 1, instance=1)


@pytest.mark.parametrize(("lend_cap", "capacity"), [(None, 12), (3, 10), (0, 4)])
def test_capacity_is_what_one_sequence_can_take(lend_cap: int | None, capacity: int):
    coordinator = make_coordinator(lend_cap=lend_cap)

    assert coordinator.capacity(1) == capacity
    assert sum(coordinator.lendable(1)) == capacity
    assert len(coordinator.grow(1, capacity)) == capacity
    with pytest.raises(OutOfBlocks):
        coordinator.grow(1, 1)


def test_home_is_the_instance_with_most_free_blocks_then_the_lowest():
    coordinator = make_coordinator()
    assert coordinator.choose_home(1) == 0

    coordinator.take(0, 1, instance=0)
    assert coordinator.choose_home(1) == 1
    assert coordinator.choose_home(1, reserved=[0, 2, 0]) == 2
    assert coordinator.choose_home(1, reserved=[0, 2, 3]) == 0


def test_no_home_for_what_can_never_fit():
    coordinator = make_coordinator(lend_cap=3)

    assert coordinator.choose_home(10) == 0
    with pytest.raises(OutOfBlocks, match="^needed 11 blocks, a sequence can have 10$"):
        coordinator.choose_home(11)


def test_usage_and_placement_are_the_picture_of_the_pools():
    coordinator = make_coordinator()
    coordinator.grow(0, 6)
    coordinator.take(2, 1, instance=2)

    assert coordinator.usage() == [
        Usage(total=4, free=0, held=4, lent=0, borrowed=2),
        Usage(total=4, free=2, held=2, lent=2, borrowed=0),
        Usage(total=4, free=3, held=1, lent=0, borrowed=0),
    ]
    assert coordinator.placement() == {"r0": {0: 4, 1: 2}, "r2": {2: 1}}


def test_beat_sends_only_what_changed(monkeypatch: pytest.MonkeyPatch):
    coordinator = make_coordinator()
    coordinator.take(0, 2, instance=0)
    sent = []
    real = coordinator.gmanager.receive
    monkeypatch.setattr(coordinator.gmanager, "receive", lambda h: (sent.append(h), real(h)))

    coordinator.beat()
    assert [(h.instance, h.is_full, len(h.entries)) for h in sent] == [
        (0, True, 1),
        (1, True, 0),
        (2, True, 0),
    ]
    sent.clear()
    coordinator.beat()
    assert sent == []
    coordinator.take(1, 1, instance=0)
    coordinator.beat()
    assert [(h.instance, h.is_full, len(h.entries)) for h in sent] == [(0, False, 1)]


def test_lost_heartbeat_is_made_good_by_the_next_beat():
    coordinator = make_coordinator()
    coordinator.take(0, 2, instance=1)
    coordinator.beat()
    coordinator.close(0)
    coordinator.rmanagers[1].heartbeat()  # lost on its way

    assert coordinator.gmanager.ledger.row(1).lent == {0: 2}
    coordinator.check()
    coordinator.beat()
    assert coordinator.gmanager.ledger.row(1).lent == {}
    assert coordinator.placement() == {}


def test_new_gmanager_knows_everything_after_one_beat():
    coordinator = make_coordinator()
    coordinator.grow(0, 6)
    usage, placement = coordinator.usage(), coordinator.placement()

    coordinator.gmanager = GManager(3)
    coordinator.check()

    assert (coordinator.usage(), coordinator.placement()) == (usage, placement)


def test_check_finds_blocks_of_a_sequence_that_is_not_open():
    coordinator = make_coordinator()
    coordinator.take(0, 1, instance=2)
    del coordinator._holders[0]

    with pytest.raises(
        InvariantError, match="^sequence 0 holds blocks of instance 2 and is not open$"
    ):
        coordinator.check()


def test_check_covers_every_rmanager_and_view():
    coordinator = make_coordinator()
    coordinator.beat()
    coordinator.gmanager.placement.apply(coordinator.rmanagers[2].heartbeat())
    with pytest.raises(InvariantError, match="^ledger heard 1 of instance 2, expected 2$"):
        coordinator.check()

    coordinator.rmanagers[1]._pool._free.pop()
    with pytest.raises(
        InvariantError, match=r"^0 held \+ 0 reserved \+ 3 free blocks, expected 4$"
    ):
        coordinator.check()


def test_idle_means_nothing_open_and_nothing_held():
    coordinator = make_coordinator()
    coordinator.grow(0, 6)
    coordinator.close(1)

    with pytest.raises(
        InvariantError, match="^idle with 2 open sequences and 6 of 12 blocks held$"
    ):
        coordinator.check_idle()
    coordinator.close(0)
    with pytest.raises(
        InvariantError, match="^idle with 1 open sequences and 0 of 12 blocks held$"
    ):
        coordinator.check_idle()
    coordinator.close(2)
    coordinator.check_idle()


def test_idle_check_includes_every_other_check():
    coordinator = Coordinator(1, 4)
    coordinator.rmanagers[0]._charges.num_lent = 1

    with pytest.raises(InvariantError, match="^instance 0: 1 lent"):
        coordinator.check_idle()


@pytest.mark.parametrize(
    ("num_instances", "blocks", "lend_cap", "message"),
    [
        (0, 4, None, "num_instances=0 must be at least 1"),
        (2, 0, None, "num_blocks=0 must be at least 1"),
        (2, 4, 5, "lend_cap=5 must be between 0 and num_blocks=4"),
    ],
)
def test_impossible_numbers_are_refused(
    num_instances: int, blocks: int, lend_cap: int | None, message: str
):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Coordinator(num_instances, blocks, lend_cap)
