"""A planner sees what gManager heard: space, batches, and blocks by request, home and instance."""

import pytest

from distkv_jax.cache import Coordinator, MoveKVCache
from distkv_jax.cache.draft import Draft
from distkv_jax.cache.performance import Profile, StepModel
from distkv_jax.cache.planner import Planner
from distkv_jax.cache.view import InstanceView, RequestView, view_of


def test_view_is_ledger_and_placement_map():
    coordinator = Coordinator(2, 8, lend_cap=4)
    coordinator.open("a", "a", 0)
    coordinator.open("b", "a", 1)
    coordinator.take("a", 3, instance=0)
    coordinator.take("a", 1, instance=1)
    coordinator.take("b", 2, instance=1)
    coordinator.set_batches([5, 6])
    coordinator.beat()

    view = view_of(coordinator.gmanager)

    assert view.instances == (InstanceView(5, 4, 5), InstanceView(5, 3, 6))
    assert view.requests == (RequestView("a", 0, {0: 3, 1: 1}), RequestView("a", 1, {1: 2}))


def test_batch_that_changed_is_news():
    coordinator = Coordinator(1, 8)
    coordinator.beat()
    coordinator.set_batches([0])
    assert not coordinator.rmanagers[0].has_changed

    coordinator.set_batches([3])
    coordinator.beat()

    assert coordinator.gmanager.ledger.row(0).batch == 3


def test_what_is_planned_can_be_moved_and_is_as_fast_as_predicted():
    coordinator = Coordinator(3, 40)
    coordinator.open("long", "long", 0)
    coordinator.open("short", "short", 1)
    tables = {"long": coordinator.take("long", 36, instance=0)}
    tables["short"] = coordinator.take("short", 3, instance=1)
    coordinator.mover.movable = lambda sequence: tables[str(sequence)][:-1]
    profile = Profile.linear(copy_block_s=0.0, spanning_step_s=0.0, spanning_tile_s=0.0)
    planner = Planner(StepModel(profile), block_size=16, period=8, limit=100, tolerance=0.0001)
    coordinator.beat()

    plan = planner.plan(view_of(coordinator.gmanager))
    done = coordinator.commit(coordinator.move(plan.orders, 100))

    assert len(done) == sum(order.num_blocks for order in plan.orders)
    assert all(isinstance(order, MoveKVCache) for order in plan.orders)
    assert coordinator.placement()["long"] == {0: 13, 1: 10, 2: 13}
    again = planner.plan(view_of(coordinator.gmanager))
    assert (again.before_s, again.moves) == (plan.after_s, ())


def test_step_is_as_slow_as_its_slowest_instance_and_what_travels():
    coordinator = Coordinator(2, 8)
    coordinator.open("a", "a", 0)
    coordinator.open("b", "b", 1)
    coordinator.take("a", 3, instance=0)
    coordinator.take("a", 1, instance=1)
    coordinator.take("b", 3, instance=1)
    coordinator.set_batches([2, 1])
    coordinator.beat()
    profile = Profile.linear(
        step_s=1.0, token_s=0.5, kv_token_s=0.25, spanning_step_s=8.0, spanning_tile_s=4.0
    )

    step_s = Draft(view_of(coordinator.gmanager), StepModel(profile), block_size=2, period=1).step_s

    # Instance 0: 1 + 2 · 0.5 and 6 tokens; instance 1: 1 + 0.5 and 8; "a" travels.
    assert step_s == pytest.approx(max(2.0 + 1.5, 1.5 + 2.0) + 8.0 + 4.0)
