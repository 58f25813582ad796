"""A plan makes steps faster, pays for its copies, fits, explains itself, and is not taken back."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distkv_jax.cache.performance import Profile, StepModel
from distkv_jax.cache.plan import Plan, net_moves
from distkv_jax.cache.planner import Planner
from distkv_jax.cache.view import InstanceView, RequestView, View
from distkv_jax.errors import ConfigError

BLOCK = 16
POOL = 100


def make_profile(*, copy_block_s: float = 0.0, tile_s: float = 0.0, span_s: float = 0.0) -> Profile:
    """A KV token takes 1 ms, so a block 16 ms; a step's other part 0.1 s whatever the batch."""
    return Profile.linear(
        step_s=0.1,
        token_s=1e-9,
        kv_token_s=1e-3,
        spanning_step_s=span_s,
        spanning_tile_s=tile_s,
        copy_block_s=copy_block_s,
    )


def make_planner(profile: Profile | None = None, *, period: int = 10, limit: int = 1000) -> Planner:
    model = StepModel(profile or make_profile())
    return Planner(model, block_size=BLOCK, period=period, limit=limit)


def make_view(
    *requests: tuple[int, dict[int, int]], num_instances: int = 2, batches: tuple[int, ...] = ()
) -> View:
    """Pools of 100 blocks that lend all they have; requests (home, blocks) "r0", "r1", ..."""
    held = [sum(blocks.get(i, 0) for _, blocks in requests) for i in range(num_instances)]
    batch = [*batches, *[1] * num_instances]
    return View(
        tuple(InstanceView(POOL - count, POOL - count, batch[i]) for i, count in enumerate(held)),
        tuple(RequestView(f"r{i}", home, blocks) for i, (home, blocks) in enumerate(requests)),
    )


def applied(view: View, plan: Plan) -> View:
    """The mesh after all that was ordered was done."""
    blocks = {(r.request_id, r.home): dict(r.blocks) for r in view.requests}
    instances = list(view.instances)
    for move in plan.moves:
        order = move.order
        mine = blocks[order.request_id, move.home]
        mine[order.source] -= order.num_blocks
        mine[order.destination] = mine.get(order.destination, 0) + order.num_blocks
        for instance, change in (
            (order.source, order.num_blocks),
            (order.destination, -order.num_blocks),
        ):
            free = instances[instance].num_free + change
            instances[instance] = instances[instance]._replace(num_free=free, num_lendable=free)
    return View(
        tuple(instances),
        tuple(
            RequestView(*name, {i: count for i, count in mine.items() if count})
            for name, mine in blocks.items()
        ),
    )


def moved(plan: Plan) -> list[tuple[str, int, int, int]]:
    return [(o.request_id, o.source, o.destination, o.num_blocks) for o in plan.orders]


def test_slowest_instance_sends_its_longest_request_to_the_fastest():
    view = make_view((0, {0: 10}), (0, {0: 60}), (1, {1: 20}), (2, {2: 10}), num_instances=3)

    plan = make_planner().plan(view)

    assert moved(plan)[0][:2] == ("r1", 0)
    assert {order.destination for order in plan.orders} == {1, 2}
    assert plan.before_s == pytest.approx(0.1 + 70 * BLOCK * 1e-3)
    assert plan.after_s == pytest.approx(0.1 + 34 * BLOCK * 1e-3)


def test_even_load_stays_where_it_is():
    plan = make_planner().plan(make_view((0, {0: 30}), (1, {1: 30})))

    assert plan.moves == ()
    assert plan.before_s == plan.after_s


def test_several_slowest_instances_are_relieved_together():
    view = make_view((0, {0: 40}), (1, {1: 40}), num_instances=4)

    plan = make_planner().plan(view)

    assert {order.source for order in plan.orders} == {0, 1}
    assert plan.after_s == pytest.approx(0.1 + 20 * BLOCK * 1e-3)


@pytest.mark.parametrize(("copy_block_s", "num_moves"), [(0.1, 1), (0.17, 0)])
def test_move_has_to_repay_its_copy_within_the_period(copy_block_s: float, num_moves: int):
    # Of 40 blocks 20 go: 10 steps of 20 · 16 ms, that is 3.2 s, or 0.16 s a block.
    plan = make_planner(make_profile(copy_block_s=copy_block_s)).plan(make_view((0, {0: 40})))

    assert len(plan.moves) == num_moves


def test_travelling_queries_count_against_a_move():
    view = make_view((0, {0: 40}))

    assert make_planner(make_profile(span_s=0.3)).plan(view).moves
    assert not make_planner(make_profile(span_s=0.33)).plan(view).moves


def test_gains_add_up_to_what_the_model_predicts():
    profile = make_profile(copy_block_s=0.01)
    view = make_view((0, {0: 40}), (1, {1: 40}), num_instances=4)

    plan = make_planner(profile).plan(view)

    # Both pairs of instances copy their 20 blocks at the same time.
    assert sum(order.num_blocks for order in plan.orders) == 40
    assert sum(move.gain_s for move in plan.moves) == pytest.approx(
        10 * (plan.before_s - plan.after_s) - 0.01 * 20
    )
    assert all(move.gain_s > 0 for move in plan.moves)


def test_plan_keeps_to_its_limit():
    plan = make_planner(limit=7).plan(make_view((0, {0: 40})))

    assert moved(plan) == [("r0", 0, 1, 7)]


def test_last_block_stays_as_it_is_written_to():
    assert make_planner().plan(make_view((0, {0: 1}), (0, {0: 1}))).moves == ()


def test_instance_that_lends_nothing_gets_nothing():
    view = make_view((0, {0: 40}))
    full = view.instances[1]._replace(num_lendable=0)

    assert make_planner().plan(view._replace(instances=(view.instances[0], full))).moves == ()


def test_guests_go_home_before_the_longest_request_is_sent_away():
    view = make_view((1, {0: 10, 1: 2}), (0, {0: 30}))

    assert moved(make_planner().plan(view)) == [("r0", 0, 1, 10), ("r1", 0, 1, 9)]


def test_home_needs_no_cap():
    view = make_view((1, {0: 40}))
    stingy = tuple(instance._replace(num_lendable=0) for instance in view.instances)

    assert moved(make_planner().plan(view._replace(instances=stingy))) == [("r0", 0, 1, 20)]


@pytest.mark.parametrize(
    ("batch", "copy_block_s", "orders"),
    [(10, 0.3, [("r9", 0, 1, 5)]), (5, 0.0, []), (10, 0.5, [])],
)
def test_room_is_made_before_an_instance_runs_out_if_that_repays_its_copy(
    batch: int, copy_block_s: float, orders: list[tuple[str, int, int, int]]
):
    # Instance 0 has 5 blocks free and, at batch 10, takes 10 in 16 steps of one block's tokens:
    # half of its 10 requests would span. Instance 1 is slower, whatever is moved.
    profile = Profile.linear(
        step_s=0.0,
        token_s=0.2,
        kv_token_s=1e-3,
        spanning_step_s=0.0,
        spanning_tile_s=0.1,
        copy_block_s=copy_block_s,
    )
    view = make_view(*[(0, {0: 5})] * 9, (0, {0: 50}), (1, {1: 10}), batches=(batch, 20))

    plan = make_planner(profile, period=16).plan(view)

    assert moved(plan) == orders
    if orders:
        # 8 steps without 5 spanning requests but 1, 16 steps slower by 5 blocks, 5 copies.
        assert plan.moves[0].gain_s == pytest.approx(8 * 4 * 0.1 - 16 * 0.08 - 5 * 0.3)
        assert "lends 5 blocks of request r9 to instance 0, before it runs out" in plan.lines()[1]


def test_requests_come_home_when_they_fit_there():
    profile = make_profile(span_s=0.05, tile_s=0.01)
    view = make_view((0, {0: 5, 1: 3}), (1, {1: 9}), (2, {2: 12}), num_instances=3)

    plan = make_planner(profile).plan(view)

    assert moved(plan) == [("r0", 1, 0, 3)]
    assert plan.after_s == pytest.approx(plan.before_s - 0.06)


def test_destination_keeps_room_to_grow():
    # Instance 1 has 100 blocks free and will take 90 of them itself.
    view = make_view((0, {0: 90}), batches=(0, 144))

    (order,) = make_planner().plan(view).orders

    assert order.num_blocks == 10


def test_plan_explains_itself_line_by_line():
    view = make_view((0, {0: 40}))
    assert make_planner().plan(view).lines() == [
        "step 740 ms, 420 ms as planned; gains in 10 steps",
        "instance 1 lends 20 blocks of request r0 to instance 0: gain 3.2e+03 ms",
    ]

    profile = make_profile(tile_s=0.01)
    lines = make_planner(profile).plan(make_view((0, {0: 5, 1: 3}), (1, {1: 9}))).lines()
    assert lines[1] == "instance 1 gives 3 blocks of request r0 back to instance 0: gain 580 ms"

    view = make_view((2, {0: 40}), (2, {2: 40}), num_instances=3)
    lines = make_planner().plan(view).lines()
    assert "lends 25 blocks of request r0 to instance 2, in place of instance 0: gain" in lines[1]


def test_net_moves_are_the_difference_of_two_placements():
    request = RequestView("r", 0, {0: 5, 1: 3, 2: 1})

    orders = [order for _, order in net_moves([request], [{0: 2, 2: 1, 3: 4, 4: 2}])]

    assert sorted((o.source, o.destination, o.num_blocks) for o in orders) == [
        (0, 3, 1),
        (0, 4, 2),
        (1, 3, 3),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"period": 0}, "period=0 must be at least 1"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"tolerance": 1.0}, "tolerance=1.0 must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str):
    arguments = {"block_size": 16, "period": 10, "limit": 10} | change
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Planner(StepModel(make_profile()), **arguments)


def test_moves_of_instances_that_would_run_out_come_first_then_the_largest():
    requests = [(0, {0: 10}), (1, {1: 60}), (2, {2: 50}), (0, {0: 70})]

    plan = make_planner(period=16).plan(
        make_view(*requests, num_instances=5, batches=(1, 1, 60, 1, 1))
    )

    assert [move.is_ahead for move in plan.moves] == sorted(
        (move.is_ahead for move in plan.moves), reverse=True
    )
    assert {move.order.source for move in plan.moves if move.is_ahead} == {2}
    gains = [move.gain_s for move in plan.moves if not move.is_ahead]
    assert len(gains) > 1 and gains == sorted(gains, reverse=True)


def test_empty_mesh_needs_no_plan():
    assert make_planner().plan(make_view(num_instances=1)).moves == ()


@st.composite
def meshes(draw: st.DrawFn) -> tuple[int, list[tuple[int, dict[int, int]]], tuple[int, ...]]:
    """Instances, requests as `make_view` takes them, and batches."""
    num_instances = draw(st.integers(1, 5))
    instance = st.integers(0, num_instances - 1)
    requests = draw(
        st.lists(st.tuples(instance, st.dictionaries(instance, st.integers(1, 15), min_size=1)))
    )
    kept: list[tuple[int, dict[int, int]]] = []
    held = [0] * num_instances
    for home, blocks in requests:
        if all(held[i] + count <= POOL for i, count in blocks.items()):
            kept.append((home, blocks))
            for i, count in blocks.items():
                held[i] += count
    batches = tuple(draw(st.lists(st.integers(0, 200), max_size=num_instances)))
    return num_instances, kept, batches


@given(
    meshes(),
    st.sampled_from([0.0, 0.001, 0.05]),
    st.sampled_from([0.0, 0.001, 0.1]),
    st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=300, deadline=None)
def test_plan_fits_and_planning_again_proposes_nothing(
    mesh: tuple[int, list[tuple[int, dict[int, int]]], tuple[int, ...]],
    copy_block_s: float,
    tile_s: float,
    span_s: float,
):
    num_instances, requests, batches = mesh
    view = make_view(*requests, num_instances=num_instances, batches=batches)
    profile = make_profile(copy_block_s=copy_block_s, tile_s=tile_s, span_s=span_s)
    planner = make_planner(profile, limit=10**6)

    plan = planner.plan(view)
    after = applied(view, plan)

    assert all(instance.num_free >= 0 for instance in after.instances)
    assert planner.plan(view) == plan
    again = planner.plan(after)
    assert again.moves == ()
    assert again.before_s == pytest.approx(plan.after_s)
