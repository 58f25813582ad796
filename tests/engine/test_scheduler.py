"""In every history the scheduler keeps its invariants, and every sequence finishes.

`loop.Loop.step` checks what must hold after every step.
"""

import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distkv_jax.engine.config import Placement
from distkv_jax.engine.encode import Encoded
from distkv_jax.engine.scheduler import StepPlan
from distkv_jax.engine.sequence import FinishReason, Sequence, State
from tests.cache.faulty import Fate
from tests.engine.loop import BLOCK_SIZE, Loop, instances_of, is_prefilled, pieces_of


def run_until_prefilled(loop: Loop, sequence: Sequence) -> None:
    while not is_prefilled(sequence):
        loop.step()


# Random histories


def fates(seed: int) -> Callable[[], Fate]:
    """What becomes of the messages of hosts; with 0 they all arrive."""
    if not seed:
        return lambda: "arrives"
    rng = random.Random(seed)
    return lambda: rng.choice(("arrives", "arrives twice", "is late", "is lost"))


# Pools so small that preemption is frequent.
POLICIES: tuple[Placement, ...] = ("home", "round_robin", "random")
SETTINGS = st.fixed_dictionaries(
    {
        "num_instances": st.integers(1, 3),
        "num_blocks": st.integers(5, 8),
        "num_slots": st.integers(1, 5),
        "prefill_tiles": st.integers(1, 3),
        "window": st.sampled_from([None, None, 3, 9]),
        "policy": st.sampled_from(POLICIES),
        "pooling": st.sampled_from([True, True, False]),
        "lend_cap": st.sampled_from([None, None, 0, 2]),
        "spread_tokens": st.sampled_from([4, 16]),
        "host_blocks": st.sampled_from([0, 4, 30]),
        "fate": st.integers(0, 99).map(fates),
    }
)


@settings(deadline=None, max_examples=150)
@given(kwargs=SETTINGS, data=st.data())
def test_every_history_keeps_the_invariants_and_ends(kwargs: Any, data: st.DataObject) -> None:
    loop = Loop(**kwargs)
    live: list[list[Sequence]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["add", "add", "add", "step", "step", "cancel"]))
        if action == "add":
            # Alone it would fit; the last token needs no slot. A window makes any length fit.
            most = loop.capacity * (1 if loop.window is None else 2)
            prompt_len = data.draw(st.integers(1, most))
            max_tokens = data.draw(st.integers(1, min(8, most - prompt_len + 1)))
            num_samples = data.draw(st.sampled_from([1, 1, 1, 3]))
            scored = data.draw(st.sampled_from([None, None, 0]))
            live.append(
                loop.add(prompt_len, max_tokens, num_samples=num_samples, prompt_logprobs=scored)
            )
        elif action == "cancel" and live:
            loop.cancel(live.pop(data.draw(st.integers(0, len(live) - 1))))
        else:
            loop.step()
    loop.run()

    assert all(sequence.state is State.FINISHED for sequence in loop.sequences)
    for sequence in loop.sequences:
        if sequence.finish_reason is FinishReason.LENGTH:
            assert len(sequence.output_tokens) == sequence.max_tokens
            if sequence.params.prompt_logprobs is not None and not sequence.key.index:
                assert len(sequence.prompt_logprobs) == sequence.prompt_len - 1


def test_those_histories_do_preempt() -> None:
    loop = Loop(2, 3, num_slots=4)
    for _ in range(4):
        loop.add(5, 12)
    loop.run()

    assert loop.scheduler.num_preemptions >= 3


# Preemption


def test_the_victim_is_the_latest_arrival() -> None:
    loop = Loop(1, 6)
    oldest, middle, latest = (loop.add(5, 12)[0] for _ in range(3))
    while not loop.scheduler.num_preemptions:
        loop.step()

    assert latest.state in (State.PREEMPTED, State.WAITING)
    assert oldest.state is middle.state is State.RUNNING


def test_without_pooling_the_victim_is_one_whose_blocks_are_of_use() -> None:
    loop = Loop(2, 4, pooling=False)
    growing, neighbour, at_home, latest = (
        loop.add(prompt_len, max_tokens)[0]
        for prompt_len, max_tokens in ((5, 12), (9, 4), (5, 8), (1, 4))
    )
    while not loop.scheduler.num_preemptions:
        assert [one.home for one in (growing, neighbour, at_home)] in ([-1, -1, -1], [0, 1, 0])
        loop.step()

    assert latest.home == 1
    assert [one.state for one in (growing, neighbour)] == [State.RUNNING] * 2
    assert (latest.state, at_home.state) == (State.FINISHED, State.WAITING)


def test_nothing_is_admitted_in_a_step_with_a_preemption() -> None:
    loop = Loop(1, 6)
    for _ in range(3):
        loop.add(5, 12)
    while True:
        (small,) = loop.add(1, 1)
        plan = loop.step()
        if loop.scheduler.num_preemptions:
            break

    # The victim left room enough for it.
    assert loop.coordinator.num_free > 0
    assert small.state is State.WAITING
    assert plan.admitted == ()


def test_a_victim_is_queued_again_once_its_token_in_flight_is_read() -> None:
    loop = Loop(1, 4)
    (victim,) = loop.add(3, 5)
    loop.step()
    loop.scheduler.preempt(victim)

    assert victim.state is State.PREEMPTED
    assert loop.scheduler.waiting == []
    assert loop.coordinator.num_free == 4
    loop.step()
    assert victim.state is State.WAITING
    assert (victim.num_computed, victim.num_pending, victim.output_tokens) == (0, 0, [0])
    loop.run()
    assert len(victim.output_tokens) == 5


def test_a_victim_with_nothing_in_flight_is_queued_at_once() -> None:
    loop = Loop(1, 4, prefill_tiles=1)
    (victim,) = loop.add(12, 5)
    loop.step()
    loop.scheduler.preempt(victim)

    assert loop.scheduler.waiting == [victim]
    loop.run()


def test_a_cancelled_sequence_gives_everything_back_at_once() -> None:
    loop = Loop(2, 4)
    running = loop.add(16, 4)
    waiting = loop.add(16, 4)
    loop.step()
    loop.cancel(running + waiting)

    assert loop.coordinator.num_free == 8
    assert loop.scheduler.running == loop.scheduler.waiting == []


def test_sequences_are_admitted_in_order_while_slots_and_blocks_last() -> None:
    loop = Loop(1, 8, num_slots=2)
    first, second, third = (loop.add(3)[0] for _ in range(3))
    plan = loop.step()

    assert plan.admitted == (first, second)
    assert loop.scheduler.waiting == [third]


def test_a_prompt_is_not_admitted_on_blocks_promised_to_another() -> None:
    loop = Loop(1, 6, tile=4, prefill_tiles=1)
    long = loop.add(20)[0]  # 5 blocks, one a step
    short = loop.add(8)[0]
    plan = loop.step()

    assert plan.admitted == (long,)
    assert short.state is State.WAITING


# Windows


def test_blocks_leave_the_window_and_are_free() -> None:
    window = 5
    loop = Loop(1, 8, window=window)
    sequence = loop.add(20, 12)[0]
    run_until_prefilled(loop, sequence)

    most = 0
    while sequence.state is not State.FINISHED:
        loop.step()
        if sequence.state is State.RUNNING:
            oldest_seen = max(0, sequence.num_computed - window)
            assert sequence.table.num_dropped == oldest_seen // BLOCK_SIZE
            most = max(most, len(sequence.table.held))
    # Five positions touch three blocks at most.
    assert most <= 3


def test_a_windowed_sequence_may_be_longer_than_the_pool() -> None:
    loop = Loop(1, 6, window=5)
    sequence = loop.add(60, 40)[0]
    loop.run()

    assert len(sequence.output_tokens) == 40
    assert loop.scheduler.num_preemptions == 0


# Samples of one request


def test_siblings_share_the_parents_full_prompt_blocks() -> None:
    loop = Loop(2, 12)
    parent, *siblings = loop.add(10, 4, num_samples=3)
    while not all(is_prefilled(sibling) for sibling in siblings):
        loop.step()

    for sibling in siblings:
        assert sibling.table.places[:2] == parent.table.places[:2]
        assert sibling.table.places[2] != parent.table.places[2]
    assert loop.coordinator.num_free == 24 - 2 - 3
    loop.run()


def test_a_prompt_of_whole_blocks_leaves_one_token_to_compute() -> None:
    loop = Loop(1, 12)
    parent, sibling = loop.add(8, 4, num_samples=2)
    while not is_prefilled(sibling):
        loop.step()

    assert sibling.table.places[0] == parent.table.places[0]
    assert sibling.table.places[1] != parent.table.places[1]


def test_siblings_wait_while_the_parent_computes_what_they_share() -> None:
    loop = Loop(1, 12, prefill_tiles=1)
    parent, sibling = loop.add(14, 4, num_samples=2)
    while parent.num_computed < 12:
        assert sibling.state is State.WAITING
        loop.step()
    loop.step()

    assert sibling.state is State.RUNNING


def test_a_sibling_whose_parent_is_finished_computes_the_prompt_itself() -> None:
    loop = Loop(1, 12, num_slots=1)
    parent, sibling = loop.add(10, 2, num_samples=2)
    while parent.state is not State.FINISHED:
        loop.step()
    assert sibling.state is State.WAITING
    pieces = loop.step().prefills

    assert [(piece.sequence, piece.start) for piece in pieces] == [(sibling, 0)]
    loop.run()


def test_a_sibling_keeps_the_shared_blocks_of_a_preempted_parent() -> None:
    loop = Loop(1, 12)
    parent, sibling = loop.add(10, 6, num_samples=2)
    while sibling.state is State.WAITING:
        loop.step()
    shared = sibling.table.places[:2]
    loop.scheduler.preempt(parent)
    loop.check()

    assert sibling.table.places[:2] == shared
    loop.run()


def test_a_sibling_of_a_preempted_parent_waits_for_it_again() -> None:
    loop = Loop(1, 12, num_slots=1)
    parent, sibling = loop.add(10, 6, num_samples=2)
    loop.step()
    loop.step()
    loop.scheduler.preempt(parent)
    loop.step()

    assert sibling.state is State.WAITING
    loop.run()
    assert len(sibling.output_tokens) == 6


@pytest.mark.parametrize("pooling", [True, False])
def test_siblings_are_at_home_where_the_shared_blocks_are(pooling: bool) -> None:
    loop = Loop(2, 12, pooling=pooling)
    parent, *siblings = loop.add(10, 4, num_samples=3)
    while any(sibling.state is State.WAITING for sibling in siblings):
        loop.step()

    assert {sibling.home for sibling in siblings} == {parent.home}
    loop.run()


# Prompt log-probabilities


def test_every_prompt_position_but_the_last_is_scored_once() -> None:
    loop = Loop(2, 12, prefill_tiles=1)
    sequence = loop.add(11, 3, prompt_logprobs=0)[0]
    scored: list[int] = []
    while not is_prefilled(sequence):
        for piece in loop.step().prefills:
            scored += range(piece.start, piece.start + piece.scores)

    assert scored == list(range(10))


# Where a prompt goes; more in test_placer.py


def test_without_pooling_nothing_is_borrowed() -> None:
    loop = Loop(3, 6, pooling=False)
    sequences = [loop.add(16, 8)[0] for _ in range(5)]
    while loop.has_work:
        loop.step()
        for sequence in sequences:
            assert set(instances_of(sequence)) <= {sequence.home}


def test_a_prompt_larger_than_an_instance_borrows() -> None:
    loop = Loop(3, 6)
    sequence = loop.add(16 * BLOCK_SIZE, 2)[0]
    run_until_prefilled(loop, sequence)

    assert set(instances_of(sequence)) == {0, 1, 2}


def test_an_instance_without_budget_is_no_reason_to_preempt() -> None:
    # Both prompts are on instance 0 and take turns; the other instances lend nothing.
    loop = Loop(2, 16, pooling=False, prefill_tiles=1, spread_tokens=4)
    for _ in range(4):
        loop.add(20, 2)
    loop.run()

    assert loop.scheduler.num_preemptions == 0


def test_shared_blocks_never_overfill_the_block_lists() -> None:
    # The lists have room for twice the pool, and each sample lists the shared blocks again: six
    # samples of four shared blocks and one of their own leave room for two of the six free ones.
    counts = []

    def count(plan: StepPlan, encoded: Encoded) -> None:
        tables = {id(piece.sequence): piece.sequence.table for piece in pieces_of(plan)}
        counts.append(sum(len(table.held) for table in tables.values()))

    loop = Loop(1, 16, num_slots=7, prefill_tiles=8, inspect=count)
    loop.add(17, 4, num_samples=6)
    loop.step()
    (late,) = loop.add(24, 2)
    loop.step()

    assert late.num_computed == 2 * BLOCK_SIZE
    assert counts == [30, 32]
    loop.run()
