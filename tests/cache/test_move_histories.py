"""Blocks keep their data, holders and charges through any history of moves, whatever gets lost.

Random open, grow, share, release and close between planned, committed, dropped and forgotten
moves, recalls and exchanges, over a transport that loses, doubles and delays requests and
heartbeats, with steps passing and gManager restarting. The model keeps each block's data as the
devices would.
"""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distkv_jax.cache import Coordinator, Place
from distkv_jax.cache.charges import SequenceKey
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.mover import Transfer, by_sequence
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import OutOfBlocks
from tests.cache.faulty import FATES, Fate, Faulty

LEASE = 2

has_open = precondition(lambda self: self.homes)
has_plan = precondition(lambda self: self.plans)


class MoveHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.homes: dict[int, int] = {}
        self.held: dict[Place, list[int]] = {}
        self.data: dict[Place, int] = {}
        self.requests: list[str] = []
        self.tables: dict[int, dict[Place, int]] = {}
        self.epochs: dict[Place, int] = {}
        self.plans: list[tuple[Transfer, ...]] = []
        self.fates: list[Fate] = []
        self.num_data = 0
        self.step = 0

    @initialize(
        num_instances=st.integers(2, 4),
        num_blocks=st.integers(2, 5),
        cap=st.sampled_from([5, 5, 5, 2, 1, 0]),
        data=st.data(),
    )
    def start(self, num_instances: int, num_blocks: int, cap: int, data: st.DataObject) -> None:
        """Begin with loans from everybody to everybody, as far as caps allow."""
        self.instances = range(num_instances)
        self.num_blocks = num_blocks
        self.cap = min(cap, num_blocks)
        self.coordinator = Coordinator(num_instances, num_blocks, self.cap, lease=LEASE)
        self.coordinator.mover.movable = self.movable
        self.post = Faulty(
            self.coordinator.mover.transport,
            lambda: self.fates.pop() if self.fates else "arrives",
        )
        self.coordinator.mover.transport = self.post
        for home in self.instances:
            sequence = self.opened(home, home)
            for instance in self.instances:
                possible = min(2, self.coordinator.lendable(home)[instance])
                count = data.draw(st.integers(0, possible), label="blocks")
                self.gained(sequence, self.coordinator.take(sequence, count, instance=instance))

    def movable(self, sequence: SequenceKey) -> list[Place]:
        assert isinstance(sequence, int)
        return list(self.tables[sequence])

    def draw_open(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.homes)), label="sequence")

    def draw_fates(self, data: st.DataObject) -> None:
        """What becomes of the next requests; most histories lose little."""
        self.fates = data.draw(st.lists(st.sampled_from(FATES), max_size=3), label="fates")

    # Sequences

    @rule(request=st.integers(0, 2), data=st.data())
    def open_sequence(self, request: int, data: st.DataObject) -> None:
        home = data.draw(st.sampled_from(self.instances), label="home")
        self.opened(request, home)

    def opened(self, request: int, home: int) -> int:
        sequence = len(self.tables)
        self.coordinator.open(sequence, f"r{request}", home)
        self.homes[sequence] = home
        self.requests.append(f"r{request}")
        self.tables[sequence] = {}
        return sequence

    @has_open
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        self.draw_fates(data)
        self.coordinator.beat()

    @has_open
    @rule(count=st.integers(1, 8), is_at_home=st.booleans(), data=st.data())
    def grow(self, count: int, is_at_home: bool, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        first = None if is_at_home else data.draw(st.sampled_from(self.instances), label="first")
        possible = self.coordinator.lendable(self.homes[sequence])
        self.fates = []
        try:
            places = self.coordinator.grow(sequence, count, first=first)
        except OutOfBlocks:
            assert count > sum(possible)
            return
        assert len(set(places)) == count <= sum(possible)
        self.gained(sequence, places)

    def gained(self, sequence: int, places: tuple[Place, ...]) -> None:
        for place in places:
            assert place not in self.held
            self.num_data += 1
            self.held[place] = [sequence]
            self.data[place] = self.tables[sequence][place] = self.num_data
            self.epochs[place] = self.coordinator.epoch(place)

    @has_open
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        others = sorted(set(self.held) - set(self.tables[sequence]))
        if not others:
            return
        places = data.draw(st.lists(st.sampled_from(others), unique=True), label="places")
        # An unheard commit may have made it a holder already, until that is undone.
        places = [place for place in places if not self.is_ghost(sequence, place)]
        self.coordinator.share(sequence, places)
        for place in places:
            self.held[place].append(sequence)
            self.tables[sequence][place] = self.data[place]

    def is_ghost(self, sequence: int, place: Place) -> bool:
        holders = self.coordinator.rmanagers[place.instance].line(place.index)
        return any(holder.sequence == sequence for holder in holders)

    @has_open
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        mine = sorted(self.tables[sequence])
        if mine:
            places = data.draw(st.lists(st.sampled_from(mine), unique=True), label="places")
            self.coordinator.release(sequence, places)
            self.forget(sequence, places)

    @has_open
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        self.coordinator.close(sequence)
        self.forget(sequence, list(self.tables[sequence]))
        del self.homes[sequence]

    def forget(self, sequence: int, places: list[Place]) -> None:
        for place in places:
            del self.tables[sequence][place]
            self.held[place].remove(sequence)
            if not self.held[place]:
                del self.held[place], self.data[place], self.epochs[place]

    # Moves

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, 4), limit=st.integers(0, 8), data=st.data())
    def plan_orders(self, count: int, limit: int, data: st.DataObject) -> None:
        orders = []
        for _ in range(data.draw(st.integers(1, 3), label="orders")):
            place = data.draw(st.sampled_from(sorted(self.held)), label="place")
            others = [instance for instance in self.instances if instance != place.instance]
            orders.append(
                MoveKVCache(
                    request_id=self.requests[self.held[place][0]],
                    num_blocks=count,
                    source=place.instance,
                    destination=data.draw(st.sampled_from(others), label="destination"),
                )
            )
        self.draw_fates(data)
        transfers = self.coordinator.move(orders, limit)
        self.check_planned(transfers, limit, data)
        asked = {(order.source, order.destination) for order in orders}
        assert {(t.source.instance, t.destination.instance) for t in transfers} <= asked

    @rule(limit=st.integers(0, 12), data=st.data())
    def plan_circles(self, limit: int, data: st.DataObject) -> None:
        self.draw_fates(data)
        transfers = self.coordinator.cancel_circles(limit)
        self.check_planned(transfers, limit, data)
        assert {t.source for t in transfers} == {t.destination for t in transfers}

    @rule(count=st.integers(0, 6), limit=st.integers(0, 12), data=st.data())
    def plan_recall(self, count: int, limit: int, data: st.DataObject) -> None:
        creditors = [i for i in self.instances if self.rmanager(i).lent] or self.instances
        creditor = data.draw(st.sampled_from(creditors), label="creditor")
        self.draw_fates(data)
        transfers = self.coordinator.recall(creditor, count, limit)
        self.check_planned(transfers, limit, data)
        assert sum(t.source.instance == creditor for t in transfers) <= count
        assert all(t.destination.instance != creditor for t in transfers)

    def check_planned(
        self, transfers: tuple[Transfer, ...], limit: int, data: st.DataObject
    ) -> None:
        assert len(transfers) <= limit
        for transfer in transfers:
            assert transfer.sequences == tuple(self.held[transfer.source])
        self.everything_adds_up()
        if transfers:
            self.plans.append(transfers)
            if data.draw(st.booleans(), label="at once"):
                self.commit(data)

    @has_plan
    @rule(data=st.data())
    def commit_later(self, data: st.DataObject) -> None:
        self.commit(data)

    def commit(self, data: st.DataObject) -> None:
        plan = self.plans.pop(data.draw(st.integers(0, len(self.plans) - 1), label="plan"))
        if data.draw(st.integers(0, 3), label="in part") == 3:
            plan = tuple(data.draw(st.lists(st.sampled_from(plan), unique=True), label="part"))
        self.draw_fates(data)
        lent = [dict(self.rmanager(instance).lent) for instance in self.instances]
        done = self.coordinator.commit(plan)
        assert set(done) <= set(plan)
        self.copy(done)
        for instance in self.instances:
            now = self.rmanager(instance).lent
            if sum(now.values()) > sum(lent[instance].values()):
                assert sum(now.values()) <= self.cap

    def rmanager(self, instance: int) -> RManager:
        return self.coordinator.rmanagers[instance]

    def copy(self, done: tuple[Transfer, ...]) -> None:
        """What the devices do: gather all, then scatter; then what tables say."""
        gathered = {t.destination: (self.data.pop(t.source), self.held.pop(t.source)) for t in done}
        for transfer in done:
            del self.epochs[transfer.source]
        assert not gathered.keys() & self.held.keys()
        for place, (content, holders) in gathered.items():
            self.data[place], self.held[place] = content, holders
            self.epochs[place] = self.coordinator.epoch(place)
        for sequence, changes in by_sequence(done).items():
            assert isinstance(sequence, int)
            self.tables[sequence] = {
                changes.get(place, place): content
                for place, content in self.tables[sequence].items()
            }

    @has_plan
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.draw_fates(data)
        self.coordinator.abort(self.plans.pop())

    @has_plan
    @rule()
    def crash(self) -> None:
        """Whoever planned it is gone, and tells nobody."""
        self.plans.pop()

    # Time and mail

    @rule(steps=st.integers(0, 4), data=st.data())
    def tick(self, steps: int, data: st.DataObject) -> None:
        self.draw_fates(data)
        self.step += steps
        self.coordinator.tick(self.step)

    @precondition(lambda self: self.post.late)
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        self.post.deliver(data.draw(st.integers(0, len(self.post.late) - 1), label="message"))

    @rule()
    def restart_gmanager(self) -> None:
        self.coordinator.gmanager = GManager(len(self.instances))

    @rule()
    def settle(self) -> None:
        """Once the mail is well again and leases have ended, everything is as it should be."""
        self.fates = []
        while self.post.late:
            self.post.deliver(0)
        self.step += LEASE + 1
        self.coordinator.tick(self.step)
        self.coordinator.beat()
        self.coordinator.check()
        for instance in self.instances:
            lines = {
                block: [holder.sequence for holder in self.rmanager(instance).line(block)]
                for block in range(self.num_blocks)
            }
            expected = {p.index: line for p, line in self.held.items() if p.instance == instance}
            assert {block: line for block, line in lines.items() if line} == expected
            row = self.coordinator.gmanager.ledger.row(instance)
            assert (row.num_reserved, row.num_free) == (0, self.num_blocks - len(expected))
            debtors = Counter(self.homes[line[0]] for line in expected.values())
            del debtors[instance]
            assert row.lent == debtors

    @invariant()
    def everything_adds_up(self) -> None:
        self.coordinator.check()
        for place, holders in self.held.items():
            line = self.rmanager(place.instance).line(place.index)
            assert [holder.sequence for holder in line] == holders
        for sequence, table in self.tables.items():
            assert all(self.data[place] == content for place, content in table.items())
            self.coordinator.check_plan((sequence, place, self.epochs[place]) for place in table)

    def teardown(self) -> None:
        for sequence in tuple(self.homes):
            self.coordinator.close(sequence)
        self.homes, self.held = {}, {}
        self.settle()
        self.coordinator.check_idle()


MoveHistory.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
TestMoveHistory = MoveHistory.TestCase
