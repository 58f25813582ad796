"""A planned move changes nothing until its commit; then all holders move, or the block stays."""

from collections.abc import Sequence

import pytest

from distkv_jax.cache import Coordinator, Place
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.messages import Commit, MoveKVCache, Release, TryMoveKVCache
from distkv_jax.cache.mover import Transfer, by_sequence
from distkv_jax.errors import ConfigError, InvariantError
from tests.cache.faulty import Fate, Faulty, scripted


class Tables:
    """Block tables as an engine keeps them; all but a sequence's last block may move."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.places: dict[int, list[Place]] = {}
        coordinator.mover.movable = lambda sequence: self.places[sequence][:-1]  # type: ignore

    def take(self, sequence: int, *counts: int) -> list[Place]:
        """Take blocks of instance 0, 1, ... in turn."""
        table = self.places.setdefault(sequence, [])
        for instance, count in enumerate(counts):
            table += self.coordinator.take(sequence, count, instance=instance)
        return table

    def commit(self, transfers: Sequence[Transfer]) -> tuple[Transfer, ...]:
        done = self.coordinator.commit(transfers)
        for sequence, changes in by_sequence(done).items():
            assert isinstance(sequence, int)
            table = self.places[sequence]
            self.places[sequence] = [changes.get(place, place) for place in table]
        self.check()
        return done

    def check(self) -> None:
        self.coordinator.check()
        self.coordinator.check_plan(
            (sequence, place, self.coordinator.epoch(place))
            for sequence, table in self.places.items()
            for place in table
        )


def make(
    *, num_instances: int = 3, lend_cap: int | None = None, lease: int = 2
) -> tuple[Coordinator, Tables]:
    """Instances of 4 blocks; sequence s is of request "r<s>" and at home on instance s."""
    coordinator = Coordinator(num_instances, 4, lend_cap=lend_cap, lease=lease)
    for sequence in range(num_instances):
        coordinator.open(sequence, f"r{sequence}", sequence)
    return coordinator, Tables(coordinator)


def order(source: int, destination: int, count: int, request: str = "r0") -> MoveKVCache:
    return MoveKVCache(request_id=request, num_blocks=count, source=source, destination=destination)


def usage(coordinator: Coordinator) -> list[tuple[int, int, int]]:
    """Free, reserved and lent blocks of each instance."""
    return [(row.free, row.reserved, row.lent) for row in coordinator.usage()]


def make_circle(*, shared: bool = False) -> tuple[Coordinator, Tables]:
    """Three full instances: each holds 2 blocks of the next one's sequence, 2 of its own."""
    coordinator, tables = make()
    tables.take(0, 1, 0, 2)
    tables.take(1, 2, 1, 0)
    tables.take(2, 0, 2, 1)
    for sequence in range(3):
        tables.take(sequence, *(int(sequence == instance) for instance in range(3)))
    if shared:
        coordinator.open(9, "r9", 0)
        coordinator.share(9, [place for table in tables.places.values() for place in table[:-1]])
        tables.places[9] = [place for table in list(tables.places.values()) for place in table[:-1]]
        tables.places[9].append(Place(0, 3))
        coordinator.share(9, [Place(0, 3)])
    assert [row.free for row in coordinator.usage()] == [0, 0, 0]
    return coordinator, tables


def test_nothing_moves_until_somebody_says_what_may():
    coordinator = Coordinator(2, 4)
    coordinator.open(0, "r0", 0)
    coordinator.take(0, 3, instance=0)

    assert coordinator.move([order(0, 1, 3)], 9) == ()


def test_oldest_blocks_move_and_nothing_changes_before_the_commit():
    coordinator, tables = make()
    tables.take(0, 4)

    transfers = coordinator.move([order(0, 1, 2)], 9)

    assert [(t.source, t.destination, t.sequences) for t in transfers] == [
        (Place(0, 0), Place(1, 0), (0,)),
        (Place(0, 1), Place(1, 1), (0,)),
    ]
    assert coordinator.placement() == {"r0": {0: 4}}
    assert usage(coordinator) == [(0, 0, 0), (2, 2, 0), (4, 0, 0)]
    assert tables.commit(transfers) == transfers
    assert coordinator.placement() == {"r0": {0: 2, 1: 2}}
    assert usage(coordinator) == [(2, 0, 0), (2, 0, 2), (4, 0, 0)]
    assert tables.places[0] == [Place(1, 0), Place(1, 1), Place(0, 2), Place(0, 3)]


def test_block_that_is_written_to_stays():
    coordinator, tables = make()
    tables.take(0, 3)

    assert len(coordinator.move([order(0, 1, 9)], 9)) == 2


def test_limit_bounds_all_orders_together():
    coordinator, tables = make()
    tables.take(0, 4)
    tables.take(1, 0, 4)

    transfers = coordinator.move([order(0, 2, 3), order(1, 2, 3, "r1")], 4)

    assert [t.source.instance for t in transfers] == [0, 0, 0, 1]


def test_planned_block_is_not_planned_twice():
    coordinator, tables = make()
    tables.take(0, 4)

    first = coordinator.move([order(0, 1, 2)], 9)
    second = coordinator.move([order(0, 2, 9)], 9)

    assert {t.source for t in first} | {t.source for t in second} == set(tables.places[0][:3])
    assert tables.commit([*first, *second]) == (*first, *second)


def test_refused_order_is_left_out_and_the_next_is_tried():
    coordinator, tables = make(lend_cap=1)
    tables.take(0, 4)

    transfers = coordinator.move([order(0, 1, 2), order(0, 2, 1)], 9)

    assert [t.destination.instance for t in transfers] == [2]
    coordinator.abort(transfers)
    assert usage(coordinator) == [(0, 0, 0), (4, 0, 0), (4, 0, 0)]


def test_unknown_instances_are_refused():
    coordinator, _ = make()

    for wrong in (order(3, 0, 1), order(0, -1, 1)):
        with pytest.raises(InvariantError, match="expected below 3"):
            coordinator.move([wrong], 1)
    with pytest.raises(InvariantError, match="^instance 3, expected below 3$"):
        coordinator.recall(3, 1, 1)


def test_shared_block_moves_with_all_its_holders_and_its_charge():
    coordinator, tables = make()
    tables.take(0, 3)
    coordinator.share(1, tables.places[0][:2])
    tables.places[1] = tables.places[0][:2]
    tables.take(1, 0, 1)

    transfers = coordinator.move([order(0, 2, 2)], 9)
    assert [t.sequences for t in transfers] == [(0, 1), (0, 1)]
    tables.commit(transfers)

    assert coordinator.placement() == {"r0": {0: 1, 2: 2}, "r1": {1: 1}}
    assert tables.places[1] == [Place(2, 0), Place(2, 1), Place(1, 0)]
    coordinator.close(0)
    assert coordinator.placement() == {"r1": {1: 1, 2: 2}}


def test_block_charged_to_another_request_is_not_this_ones_to_move():
    coordinator, tables = make()
    tables.take(0, 3)
    coordinator.share(1, tables.places[0][:2])
    tables.places[1] = tables.places[0][:2]
    tables.take(1, 1)

    assert coordinator.move([order(0, 2, 9, "r1")], 9) == ()


@pytest.mark.parametrize("change", ["close", "release", "share", "retake"])
def test_what_changed_hands_is_dropped_at_commit_and_its_reservation_is_free(change: str):
    coordinator, tables = make()
    tables.take(0, 4)
    transfers = coordinator.move([order(0, 1, 3)], 9)
    first = tables.places[0][0]
    match change:
        case "close":
            coordinator.close(0)
            del tables.places[0]
        case "share":
            coordinator.share(2, [first])
            tables.places[2] = [first]
        case _:
            coordinator.release(0, [first])
            del tables.places[0][0]
    if change == "retake":  # the same sequence, the same block, other data
        tables.take(0, 1)
        assert tables.places[0][-1] == first

    done = tables.commit(transfers)

    assert done == (() if change == "close" else transfers[1:])
    assert [row.reserved for row in coordinator.usage()] == [0, 0, 0]
    assert coordinator.usage()[1].held == len(done)


def test_abort_frees_what_was_reserved_and_its_blocks_may_be_planned_again():
    coordinator, tables = make()
    tables.take(0, 4)
    transfers = coordinator.move([order(0, 1, 3)], 9)

    coordinator.abort(transfers)

    assert usage(coordinator) == [(0, 0, 0), (4, 0, 0), (4, 0, 0)]
    assert tables.commit(transfers) == ()
    assert len(tables.commit(coordinator.move([order(0, 1, 3)], 9))) == 3


def test_commit_twice_moves_once():
    coordinator, tables = make()
    tables.take(0, 4)
    transfers = coordinator.move([order(0, 1, 3)], 9)

    assert tables.commit(transfers) == transfers
    assert tables.commit(transfers) == ()
    assert coordinator.placement() == {"r0": {0: 1, 1: 3}}


def test_plan_that_is_never_committed_ends_with_its_lease():
    coordinator, tables = make(lease=2)
    tables.take(0, 4)
    transfers = coordinator.move([order(0, 1, 3)], 9)

    coordinator.tick()
    coordinator.tick(2)
    assert coordinator.usage()[1].reserved == 3
    coordinator.tick(3)
    assert coordinator.usage()[1].reserved == 0
    assert tables.commit(transfers) == ()
    assert len(coordinator.move([order(0, 1, 3)], 9)) == 3


def test_negative_lease_is_refused():
    with pytest.raises(ConfigError, match="^lease=-1 must be at least 0$"):
        Coordinator(1, 4, lease=-1)


# Circles


@pytest.mark.parametrize("shared", [False, True])
def test_circle_is_called_home_with_every_pool_full(shared: bool):
    coordinator, tables = make_circle(shared=shared)
    before = usage(coordinator)

    transfers = coordinator.cancel_circles(99)
    assert usage(coordinator) == before
    assert len(transfers) == 6
    assert tables.commit(transfers) == transfers

    assert usage(coordinator) == [(0, 0, 0)] * 3
    assert coordinator.placement() == {"r0": {0: 4}, "r1": {1: 4}, "r2": {2: 4}}
    assert coordinator.cancel_circles(99) == ()


@pytest.mark.parametrize(("limit", "moved"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6)])
def test_circles_move_whole_rounds_within_the_limit(limit: int, moved: int):
    coordinator, tables = make_circle()

    assert len(tables.commit(coordinator.cancel_circles(limit))) == moved


def test_circle_in_which_one_block_changed_hands_is_dropped_whole():
    coordinator, tables = make_circle()
    transfers = coordinator.cancel_circles(3)
    coordinator.close(1)
    del tables.places[1]

    assert tables.commit(transfers) == ()


def test_circle_stops_at_what_may_not_move():
    coordinator, tables = make_circle()
    tables.places[1] = tables.places[1][::-1]  # its last block is now the one on instance 0

    assert len(coordinator.cancel_circles(99)) == 3


# Recall


def test_recall_sends_blocks_home_where_there_is_room():
    coordinator, tables = make()
    tables.take(0, 1, 3)
    tables.take(0, 1)

    transfers = coordinator.recall(1, 2, 9)
    tables.commit(transfers)

    assert coordinator.placement() == {"r0": {0: 4, 1: 1}}


def test_recall_makes_room_at_home_along_a_path_of_debts():
    coordinator, tables = make()
    tables.take(0, 1, 3)
    tables.take(2, 2, 0, 1)
    tables.take(0, 1)

    transfers = coordinator.recall(1, 9, 9)

    # Instance 0 is full, with two blocks of instance 2, which has room.
    assert [(t.source.instance, t.destination.instance) for t in transfers] == [
        (1, 0),
        (0, 2),
        (1, 0),
        (0, 2),
        (1, 2),
    ]
    assert tables.commit(transfers) == transfers
    assert [row.free for row in coordinator.usage()] == [0, 4, 0]


def test_recall_goes_to_other_creditors_when_home_is_full():
    coordinator, tables = make()
    tables.take(0, 3, 3)
    tables.take(0, 1)

    tables.commit(coordinator.recall(1, 2, 9))

    assert coordinator.placement() == {"r0": {0: 4, 1: 1, 2: 2}}


@pytest.mark.parametrize(("count", "limit"), [(2, 9), (9, 2), (0, 9), (9, 0)])
def test_recall_keeps_to_its_count_and_limit(count: int, limit: int):
    coordinator, tables = make()
    tables.take(0, 1, 3)
    tables.take(0, 1)

    assert len(coordinator.recall(1, count, limit)) == min(count, limit)


def test_path_that_the_limit_cuts_moves_nothing_half_way():
    coordinator, tables = make(lend_cap=3)
    tables.take(0, 1, 3)
    tables.take(2, 2, 0, 1)
    tables.take(0, 1)

    transfers = coordinator.recall(1, 9, 3)

    assert [(t.source.instance, t.destination.instance) for t in transfers] == [
        (1, 0),
        (0, 2),
        (1, 2),
    ]


def test_path_is_dropped_from_where_it_is_stuck_on():
    coordinator, tables = make()
    tables.take(0, 1, 3)
    tables.take(2, 2, 0, 1)
    tables.take(0, 1)
    transfers = coordinator.recall(1, 1, 9)
    assert len(transfers) == 2

    coordinator.share(1, [transfers[1].source])
    tables.places[1] = [transfers[1].source]

    assert tables.commit(transfers) == ()


def test_end_of_a_path_moves_alone_when_its_beginning_changed_hands():
    coordinator, tables = make()
    tables.take(0, 1, 3)
    tables.take(2, 2, 0, 1)
    tables.take(0, 1)
    transfers = coordinator.recall(1, 1, 9)

    coordinator.close(0)
    del tables.places[0]

    assert tables.commit(transfers) == transfers[1:]


def test_recall_tries_the_next_debtor_where_the_ledger_was_wrong():
    coordinator, tables = make()
    tables.take(0, 0, 2)
    tables.take(2, 0, 2, 1)
    tables.take(0, 1)
    coordinator.beat()
    tables.take(0, 3)  # the ledger does not hear that instance 0 is full
    coordinator.mover.transport = Faulty(coordinator.mover.transport, scripted("is lost"))

    tables.commit(coordinator.recall(1, 2, 9))

    assert coordinator.placement() == {"r0": {0: 4, 1: 2}, "r2": {2: 3}}


def test_recall_with_nowhere_to_go_plans_nothing():
    coordinator, tables = make(num_instances=2)
    tables.take(0, 3, 3)
    tables.take(0, 1)

    assert coordinator.recall(1, 2, 9) == ()


# Epochs


def test_epoch_grows_with_every_change_of_hands_only():
    coordinator, tables = make()
    tables.take(0, 3)
    place = tables.places[0][0]
    assert coordinator.epoch(place) == 1
    coordinator.share(1, [place])
    coordinator.release(1, [place])
    assert coordinator.epoch(place) == 1

    (transfer,) = tables.commit(coordinator.move([order(0, 1, 1)], 1))

    assert coordinator.epoch(transfer.destination) == 1
    assert coordinator.take(2, 1, instance=0) == (place,)
    assert coordinator.epoch(place) == 2


def test_exchange_is_a_change_of_hands_on_both_sides():
    coordinator, tables = make_circle()
    before = {
        place: coordinator.epoch(place) for table in tables.places.values() for place in table
    }

    done = tables.commit(coordinator.cancel_circles(3))

    for place, epoch in before.items():
        moved = any(place == transfer.source for transfer in done)
        assert coordinator.epoch(place) == epoch + moved


def test_plan_that_names_a_block_that_changed_hands_is_found():
    coordinator, tables = make()
    tables.take(0, 2)
    place = tables.places[0][0]
    coordinator.check_plan([(0, place, 1)])

    coordinator.release(0, [place])
    with pytest.raises(
        InvariantError, match=r"^plan names Place\(.*\), which sequence 0 does not hold$"
    ):
        coordinator.check_plan([(0, place, 1)])
    coordinator.take(0, 1, instance=0)
    with pytest.raises(InvariantError, match=r"^plan names Place\(.*\) of epoch 1, it is 2$"):
        coordinator.check_plan([(0, place, 1)])


# Lost messages


@pytest.mark.parametrize("fate", ["is lost", "arrives unanswered", "is late"])
def test_unanswered_reservation_is_released(fate: Fate):
    coordinator, tables = make()
    tables.take(0, 4)
    faulty = Faulty(coordinator.mover.transport, scripted(fate))
    coordinator.mover.transport = faulty

    assert coordinator.move([order(0, 1, 3)], 9) == ()
    assert [type(m) for m in faulty.sent] == [TryMoveKVCache, Release]
    while faulty.late:
        faulty.deliver(0)
    assert usage(coordinator) == [(0, 0, 0), (4, 0, 0), (4, 0, 0)]


@pytest.mark.parametrize("fate", ["is lost", "arrives unanswered", "is late"])
def test_unanswered_commit_is_undone_and_the_source_stays(fate: Fate):
    coordinator, tables = make()
    tables.take(0, 4)
    fates = scripted("arrives", fate, "is lost", "is lost")
    faulty = Faulty(coordinator.mover.transport, fates)
    coordinator.mover.transport = faulty
    transfers = coordinator.move([order(0, 1, 3)], 9)

    assert tables.commit(transfers) == ()
    coordinator.tick()
    coordinator.tick(50)
    while faulty.late:
        faulty.deliver(0)

    assert [type(m) for m in faulty.sent] == [TryMoveKVCache, Commit, Release, Release, Release]
    assert usage(coordinator) == [(0, 0, 0), (4, 0, 0), (4, 0, 0)]
    assert coordinator.placement() == {"r0": {0: 4}}


def test_planning_survives_a_new_gmanager():
    coordinator, tables = make_circle()
    coordinator.gmanager = GManager(3)

    assert len(tables.commit(coordinator.cancel_circles(99))) == 6
