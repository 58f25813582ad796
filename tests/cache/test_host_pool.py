"""Host memory is given to whole saves, first come first served; every heartbeat tells it all."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from distkv_jax.cache.audit import check_hosts
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.messages import Heartbeat, NotSaved, Saved
from distkv_jax.cache.usage import usage_of
from distkv_jax.errors import InvariantError


def test_a_save_gets_all_its_blocks_or_none() -> None:
    pool = HostPool(1, 5)

    assert pool.save(7, "a", 0, 3) == Saved(instance=1, save_id=7)
    assert pool.save(8, "b", 1, 3) == NotSaved(instance=1, save_id=8, num_free=2)

    assert len(set(pool.blocks(7))) == 3
    assert pool.blocks(8) == ()
    assert pool.rmanager.num_free == 2


def test_what_is_forgotten_makes_room() -> None:
    pool = HostPool(0, 3)
    pool.save(1, "a", 0, 3)

    pool.forget(1)

    assert pool.save(2, "b", 0, 3) == Saved(instance=0, save_id=2)


def test_blocks_are_charged_to_the_home_of_who_had_them() -> None:
    pool, gmanager = HostPool(1, 5), GManager(2)
    pool.save(1, "a", 0, 2)
    pool.save(2, "b", 1, 1)

    gmanager.receive(pool.heartbeat())

    assert gmanager.ledger.row(1).lent == {0: 2}
    assert gmanager.placement.requests() == {"a": {1: 2}, "b": {1: 1}}
    assert usage_of(gmanager.ledger, 1)[:3] == (5, 2, 3)


def test_the_audit_names_saves_that_nobody_knows() -> None:
    pool = HostPool(1, 5)
    pool.save(1, "a", 0, 2)
    pool.save(2, "b", 0, 2)

    check_hosts(GManager(2), [pool], [1, 2])
    with pytest.raises(InvariantError, match=r"instance 1 holds blocks of saves \[2\]"):
        check_hosts(GManager(2), [pool], [1])


def test_blocks_that_no_save_holds_are_found() -> None:
    pool = HostPool(1, 5)
    pool.save(1, "a", 0, 2)
    del pool._saves[1]

    with pytest.raises(InvariantError, match=r"saves \[\], blocks held by \[1\]"):
        pool.check()


class History(RuleBasedStateMachine):
    """Saves and forgets, each perhaps twice; heartbeats are lost, doubled and late."""

    @initialize(num_blocks=st.integers(1, 8))
    def start(self, num_blocks: int) -> None:
        self.pool = HostPool(0, num_blocks)
        self.gmanager = GManager(1)
        self.num_blocks = num_blocks
        self.model: dict[int, int] = {}
        self.post: list[Heartbeat] = []

    @rule(save_id=st.integers(0, 9), count=st.integers(1, 9))
    def save(self, save_id: int, count: int) -> None:
        free = self.num_blocks - sum(self.model.values())
        before = self.pool.blocks(save_id)

        answer = self.pool.save(save_id, f"r{save_id % 3}", 0, count)

        if save_id in self.model:
            # As before, whatever a second order says.
            assert self.pool.blocks(save_id) == before
        elif count <= free:
            self.model[save_id] = count
        else:
            assert answer == NotSaved(instance=0, save_id=save_id, num_free=free)
            return
        assert answer == Saved(instance=0, save_id=save_id)

    @rule(save_id=st.integers(0, 9))
    def forget(self, save_id: int) -> None:
        self.pool.forget(save_id)
        self.model.pop(save_id, None)

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        self.model.clear()

    @rule()
    def post_heartbeat(self) -> None:
        self.post.append(self.pool.heartbeat())

    @rule(at=st.integers(0, 20), is_kept=st.booleans())
    def deliver(self, at: int, is_kept: bool) -> None:
        if self.post:
            heartbeat = self.post[at % len(self.post)]
            if not is_kept:
                self.post.remove(heartbeat)
            self.gmanager.receive(heartbeat)

    @rule()
    def hear_the_last(self) -> None:
        self.gmanager.receive(self.pool.heartbeat())
        row = self.gmanager.ledger.row(0)
        held = sum(self.model.values())
        assert (row.num_blocks, row.num_free) == (self.num_blocks, self.num_blocks - held)
        assert sum(self.gmanager.placement.entries(0).values()) == held

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "pool"):
            check_hosts(self.gmanager, [self.pool], self.model)
            assert {one: len(self.pool.blocks(one)) for one in self.pool.saves} == self.model
            blocks = [block for one in self.pool.saves for block in self.pool.blocks(one)]
            assert len(set(blocks)) == len(blocks)


TestHistory = History.TestCase
TestHistory.settings = settings(deadline=None, max_examples=60)
