"""Whatever moves between steps, every token is read where it is, and nothing waits for ever.

`loop.Loop` writes and reads names of tokens block by block (`contents.py`), and checks the
invariants after every move and step.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distkv_jax.engine.config import Placement
from distkv_jax.engine.pressure import Pressure
from tests.engine.loop import BLOCK_SIZE, Loop, instances_of
from tests.engine.random_planner import RandomPlanner
from tests.engine.test_scheduler import SETTINGS


@settings(deadline=None, max_examples=100)
@given(
    kwargs=SETTINGS,
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8)), min_size=1, max_size=8),
    num_samples=st.sampled_from([1, 1, 3]),
    move_tokens=st.sampled_from([0, 2, 8, 64]),
    seed=st.integers(0, 99),
)
def test_tokens_are_read_where_moves_have_put_them(
    kwargs: Any, lengths: list[tuple[int, int]], num_samples: int, move_tokens: int, seed: int
) -> None:
    num_instances = kwargs["num_instances"]
    planner = RandomPlanner(num_instances, seed) if num_instances > 1 else None
    loop = Loop(**kwargs, move_tokens=move_tokens, planner=planner)
    for prompt_len, max_tokens in lengths:
        if prompt_len + max_tokens <= loop.capacity:
            loop.add(prompt_len, max_tokens, num_samples=num_samples)
        loop.step()

    loop.run()


def test_a_budget_that_is_not_there_moves_nothing() -> None:
    loop = Loop(3, 8, planner=RandomPlanner(3, 0), policy="round_robin")
    loop.add(20, 8)

    loop.run()

    assert loop.contents.num_moved == 0


@pytest.mark.parametrize("move_tokens", [1, 4])
def test_a_budget_is_kept_over_steps(move_tokens: int) -> None:
    loop = Loop(3, 8, planner=RandomPlanner(3, 0), policy="round_robin", move_tokens=move_tokens)
    loop.add(20, 8)

    loop.run()

    assert 0 < loop.contents.num_moved <= loop.num_steps * move_tokens / BLOCK_SIZE
    assert loop.rebalancer.stats.planned == loop.rebalancer.stats.total == loop.contents.num_moved


def test_a_creditor_that_needs_its_memory_gets_it_back() -> None:
    # A long prompt of instance 0 borrows from 1, then ends in part: 1 grows and borrows from 2.
    loop = Loop(3, 6, num_slots=4, prefill_tiles=8, spread_tokens=99, move_tokens=64)
    [borrower] = loop.add(BLOCK_SIZE * 8, 24)
    loop.step()
    creditor = next(place.instance for place in borrower.table.places if place.instance)
    assert instances_of(borrower).count(creditor) == 2
    [grower] = loop.add(BLOCK_SIZE * 3, 24)
    while grower.home != creditor:
        loop.cancel([grower])
        [grower] = loop.add(BLOCK_SIZE * 3, 24)
        loop.step()
    loop.run()

    assert loop.rebalancer.stats.recalled > 0


def test_a_recall_in_vain_is_not_waited_for_again_at_once() -> None:
    loop = Loop(2, 4)
    loop.coordinator.open("debtor", "r", 1)
    loop.coordinator.take("debtor", 1, instance=0)
    pressure = Pressure(loop.coordinator, patience=3)

    assert pressure.wait(0)
    assert pressure.wanted == {0: 1} and pressure.urgent == {0}
    pressure.relieved(0, 0)
    for _ in range(3):
        pressure.next_step()
        assert not pressure.wait(0)
    pressure.next_step()
    assert pressure.wait(0)


@pytest.mark.parametrize("policy", ["home", "round_robin"])
def test_sequences_that_all_wait_for_recalls_preempt_in_the_end(policy: Placement) -> None:
    loop = Loop(2, 4, num_slots=4, policy=policy)
    for _ in range(4):
        loop.add(5, 20)

    loop.run()

    assert loop.num_steps < 200


def test_a_recall_that_a_budget_held_back_may_be_waited_for() -> None:
    loop = Loop(3, 4, move_tokens=BLOCK_SIZE)
    loop.coordinator.open("debtor", "r", 1)
    loop.coordinator.take("debtor", 1, instance=0)
    loop.rebalancer.pressure.note(0)

    # Nothing of the debtor's may move: no table names its block.
    loop.rebalancer.step([])

    assert loop.rebalancer.pressure.wait(0)


def test_where_no_block_is_free_no_recall_is_waited_for() -> None:
    loop = Loop(2, 2)
    loop.coordinator.open("debtor", "r", 1)
    loop.coordinator.take("debtor", 2, instance=0)
    loop.coordinator.take("debtor", 2, instance=1)

    assert not loop.rebalancer.pressure.wait(0)


def test_an_instance_that_lent_nothing_has_nothing_to_wait_for() -> None:
    loop = Loop(2, 4)

    pressure = Pressure(loop.coordinator, patience=3)
    pressure.note(0)

    assert not pressure.wait(0)
    assert not pressure.wanted
