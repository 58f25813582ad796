"""After every step of any history the blocks add up, and the ledger is soft state that heals.

Random open, grow, take, share, release and close; heartbeats are lost, doubled and delivered
late, and gManager is restarted. The model is a dict from place to its holders in order.
"""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distkv_jax.cache import Coordinator, Place
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.messages import Heartbeat
from distkv_jax.errors import InvariantError, LendRefused, OutOfBlocks

has_open = precondition(lambda self: self.open)
has_post = precondition(lambda self: self.post)


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, tuple[str, int]] = {}
        self.held: dict[Place, list[int]] = {}
        self.post: list[Heartbeat] = []
        self.num_opened = 0

    @initialize(
        num_instances=st.integers(1, 3),
        num_blocks=st.integers(1, 6),
        lend_cap=st.none() | st.integers(0, 6),
        pooling=st.sampled_from([True, True, True, False]),
    )
    def start(
        self, num_instances: int, num_blocks: int, lend_cap: int | None, pooling: bool
    ) -> None:
        cap = None if lend_cap is None else min(lend_cap, num_blocks)
        self.instances = range(num_instances)
        self.num_blocks = num_blocks
        self.lend_cap = (num_blocks if cap is None else cap) if pooling else 0
        self.coordinator = Coordinator(num_instances, num_blocks, cap, pooling)

    # What the model says

    def home(self, sequence: int) -> int:
        return self.open[sequence][1]

    def free(self, instance: int) -> int:
        return self.num_blocks - sum(place.instance == instance for place in self.held)

    def accounts(self, instance: int) -> Counter[tuple[str, int]]:
        return Counter(
            self.open[holders[0]]
            for place, holders in self.held.items()
            if place.instance == instance
        )

    def lent(self, instance: int) -> Counter[int]:
        debts: Counter[int] = Counter()
        for (_, home), count in self.accounts(instance).items():
            if home != instance:
                debts[home] += count
        return debts

    def lendable(self, home: int) -> list[int]:
        return [
            self.free(instance)
            if instance == home
            else max(0, min(self.free(instance), self.lend_cap - self.lent(instance).total()))
            for instance in self.instances
        ]

    def places_of(self, sequence: int) -> list[Place]:
        return sorted(place for place, holders in self.held.items() if sequence in holders)

    # Draws

    def draw_open(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.open)), label="sequence")

    def draw_some(self, data: st.DataObject, places: list[Place]) -> list[Place]:
        if not places:
            return []
        return data.draw(st.lists(st.sampled_from(places), unique=True), label="places")

    def gained(self, sequence: int, places: tuple[Place, ...], count: int) -> None:
        assert len(set(places)) == len(places) == count
        assert not set(places) & set(self.held)
        self.held.update({place: [sequence] for place in places})

    def lost(self, sequence: int, places: list[Place]) -> None:
        for place in places:
            self.held[place].remove(sequence)
            if not self.held[place]:
                del self.held[place]

    # The history

    @rule(request=st.integers(0, 3), data=st.data())
    def open_sequence(self, request: int, data: st.DataObject) -> None:
        home = data.draw(st.sampled_from(self.instances), label="home")
        sequence, self.num_opened = self.num_opened, self.num_opened + 1

        self.coordinator.open(sequence, f"r{request}", home)

        self.open[sequence] = (f"r{request}", home)

    @has_open
    @rule(count=st.integers(0, 8), data=st.data())
    def take(self, count: int, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        instance = data.draw(st.sampled_from(self.instances), label="instance")
        possible = self.lendable(self.home(sequence))[instance]
        if count <= possible:
            places = self.coordinator.take(sequence, count, instance=instance)
            assert all(place.instance == instance for place in places)
            self.gained(sequence, places, count)
            return
        with pytest.raises(OutOfBlocks) as refused:
            self.coordinator.take(sequence, count, instance=instance)
        assert (refused.value.needed, refused.value.free) == (count, possible)
        assert isinstance(refused.value, LendRefused) == (instance != self.home(sequence))

    @has_open
    @rule(count=st.integers(0, 12), data=st.data())
    def grow(self, count: int, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        first = data.draw(st.none() | st.sampled_from(self.instances), label="first")
        home = self.home(sequence)
        possible = self.lendable(home)
        if count > sum(possible):
            with pytest.raises(OutOfBlocks) as refused:
                self.coordinator.grow(sequence, count, first=first)
            assert (refused.value.needed, refused.value.free) == (count, sum(possible))
            return
        places = self.coordinator.grow(sequence, count, first=first)
        self.gained(sequence, places, count)
        given = Counter(place.instance for place in places)
        rest = count
        for instance in dict.fromkeys([home if first is None else first, home]):
            assert given[instance] == min(rest, possible[instance])
            rest -= given[instance]

    @has_open
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        others = sorted(set(self.held) - set(self.places_of(sequence)))
        places = self.draw_some(data, others)

        self.coordinator.share(sequence, places)

        for place in places:
            self.held[place].append(sequence)

    @has_open
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        places = self.draw_some(data, self.places_of(sequence))

        self.coordinator.release(sequence, places)

        self.lost(sequence, places)

    @has_open
    @rule(data=st.data())
    def release_too_much(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)
        mine = self.places_of(sequence)
        everywhere = {Place(i, block) for i in self.instances for block in range(self.num_blocks)}
        foreign = sorted(everywhere - set(mine))
        if not foreign:
            return
        with pytest.raises(InvariantError, match="does not hold blocks"):
            self.coordinator.release(sequence, [*mine, *foreign[:1]])

    @has_open
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.draw_open(data)

        self.coordinator.close(sequence)

        self.lost(sequence, self.places_of(sequence))
        del self.open[sequence]
        with pytest.raises(InvariantError, match="is not open"):
            self.coordinator.close(sequence)

    # The post: what is sent may come late, twice or never

    @rule(is_full=st.booleans(), data=st.data())
    def send(self, is_full: bool, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.instances), label="instance")
        self.post.append(self.coordinator.rmanagers[instance].heartbeat(is_full=is_full))

    @has_post
    @rule(keep=st.booleans(), data=st.data())
    def deliver(self, keep: bool, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.post) - 1), label="message")
        self.coordinator.gmanager.receive(self.post[index] if keep else self.post.pop(index))

    @has_post
    @rule()
    def lose_all(self) -> None:
        self.post.clear()

    @rule()
    def restart_gmanager(self) -> None:
        self.coordinator.gmanager = GManager(len(self.instances))

    @rule()
    def beat(self) -> None:
        self.coordinator.beat()

        for instance in self.instances:
            row = self.coordinator.gmanager.ledger.row(instance)
            assert (row.num_blocks, row.num_free) == (self.num_blocks, self.free(instance))
            assert row.lent == self.lent(instance)
        requests: dict[str, dict[int, int]] = {}
        for instance in self.instances:
            for (request_id, _), count in self.accounts(instance).items():
                blocks = requests.setdefault(request_id, {})
                blocks[instance] = blocks.get(instance, 0) + count
        assert self.coordinator.placement() == requests

    @invariant()
    def blocks_add_up(self) -> None:
        self.coordinator.check()
        for instance in self.instances:
            rmanager = self.coordinator.rmanagers[instance]
            assert rmanager.num_free == self.free(instance)
            assert rmanager.accounts() == self.accounts(instance)
            assert self.coordinator.lendable(instance) == self.lendable(instance)
        assert self.coordinator.num_free == sum(map(self.free, self.instances))

    def teardown(self) -> None:
        for sequence in self.open:
            self.coordinator.close(sequence)
        self.coordinator.beat()
        self.coordinator.check_idle()
        assert self.coordinator.placement() == {}


History.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, report_multiple_bugs=False
)
TestHistory = History.TestCase
