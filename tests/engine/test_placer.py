"""A prompt goes where its policy says, in whole blocks, within blocks and budget."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distkv_jax.engine.budget import Budget
from distkv_jax.engine.placer import Span, Spans
from distkv_jax.engine.sequence import Sequence
from distkv_jax.errors import OutOfBlocks
from tests.engine.loop import BLOCK_SIZE, Loop, instances_of, make_sequence


def open_sequence(loop: Loop, prompt_len: int, home: int = 0, **kwargs: Any) -> Sequence:
    """Make a sequence that runs, as if it had just been admitted."""
    number = len(loop.sequences)
    sequence = make_sequence(prompt_len, name=f"request-{number}", arrival=number, **kwargs)
    loop.sequences.append(sequence)
    loop.coordinator.open(sequence.key, sequence.key.request_id, home)
    sequence.home = home
    return sequence


def place(loop: Loop, sequence: Sequence, budget: Budget | None = None) -> Spans:
    budget = budget or Budget(loop.shapes, loop.num_instances)
    return loop.scheduler.placer.place_prompt(sequence, budget)


def grow(loop: Loop, sequence: Sequence, count: int = 1) -> None:
    for _ in range(count):
        loop.scheduler.placer.grow(sequence)


def test_a_short_prompt_stays_at_home() -> None:
    loop = Loop(3, 8, prefill_tiles=4, spread_tokens=16)
    sequence = open_sequence(loop, 16, home=1)

    assert place(loop, sequence) == Spans((Span(1, 0, 16),), False)
    assert instances_of(sequence) == [1] * 4


def test_a_short_prompt_waits_for_homes_budget_rather_than_spreading() -> None:
    loop = Loop(3, 8, prefill_tiles=2, spread_tokens=16)
    sequence = open_sequence(loop, 16)

    assert place(loop, sequence) == Spans((Span(0, 0, 8),), False)


def test_a_long_prompt_is_spread_in_whole_blocks() -> None:
    loop = Loop(3, 8, prefill_tiles=2, spread_tokens=16)
    sequence = open_sequence(loop, 21)

    # Two tiles of four tokens an instance, which are two blocks.
    assert place(loop, sequence) == Spans((Span(0, 0, 8), Span(1, 8, 8), Span(2, 16, 5)), False)
    assert instances_of(sequence) == [0, 0, 1, 1, 2, 2]


def test_chunks_that_are_no_whole_blocks_end_at_a_block() -> None:
    # Tiles of 3 tokens: 9 fit, 8 are taken, since another instance goes on.
    loop = Loop(2, 8, tile=3, prefill_tiles=3, spread_tokens=4)
    sequence = open_sequence(loop, 18)

    assert place(loop, sequence).spans == (Span(0, 0, 8), Span(1, 8, 8))


def test_a_partial_last_block_is_continued_where_it_is() -> None:
    loop = Loop(2, 8, tile=4, prefill_tiles=1, policy="round_robin")
    sequence = open_sequence(loop, 20)
    sequence.table.append(loop.coordinator.take(sequence.key, 1, instance=1))
    sequence.num_computed = 3

    assert place(loop, sequence).spans[0] == Span(1, 3, 1)


def test_a_home_without_blocks_borrows() -> None:
    loop = Loop(2, 4, prefill_tiles=8, spread_tokens=99)
    other = open_sequence(loop, 8)
    loop.coordinator.take(other.key, 3, instance=0)
    loop.coordinator.beat()
    sequence = open_sequence(loop, 12)

    assert place(loop, sequence).spans == (Span(0, 0, 4), Span(1, 4, 8))


def test_without_pooling_a_full_home_ends_the_prompt() -> None:
    loop = Loop(2, 2, prefill_tiles=8, pooling=False, spread_tokens=4)
    sequence = open_sequence(loop, 12)

    assert place(loop, sequence) == Spans((Span(0, 0, 8),), True)
    assert instances_of(sequence) == [0, 0]
    sequence.num_computed = 8
    assert place(loop, sequence) == Spans((), True)


def test_a_budget_that_is_used_up_is_not_a_lack_of_blocks() -> None:
    loop = Loop(2, 8, prefill_tiles=1, pooling=False, spread_tokens=4)
    budget = Budget(loop.shapes, 2)
    budget.take_tiles(0, 4, outputs=1)
    sequence = open_sequence(loop, 12)

    assert place(loop, sequence, budget) == Spans((), False)


def test_a_prompt_that_gets_nothing_takes_no_budget() -> None:
    loop = Loop(1, 4, prefill_tiles=4)
    sequence = open_sequence(loop, 20)
    place(loop, sequence)
    sequence.num_computed = 16
    budget = Budget(loop.shapes, 1)

    assert place(loop, sequence, budget) == Spans((), True)
    assert place(loop, sequence, budget) == Spans((), True)
    assert vars(budget) == vars(Budget(loop.shapes, 1))


def test_new_blocks_need_entries_too() -> None:
    loop = Loop(1, 8, prefill_tiles=8)
    budget = Budget(loop.shapes, 1)
    budget.entries[0] = 3
    sequence = open_sequence(loop, 30)

    assert place(loop, sequence, budget).spans == (Span(0, 0, 12),)
    assert budget.entries == [0]


def test_scored_positions_need_an_output_row_each() -> None:
    loop = Loop(1, 8, num_slots=4, prefill_tiles=2)
    sequence = open_sequence(loop, 9, prompt_logprobs=0)

    # Eight tokens fit in two tiles, but there are six output rows.
    assert place(loop, sequence).spans[0].count <= 6


def test_round_robin_takes_the_instances_in_turn() -> None:
    loop = Loop(3, 8, prefill_tiles=8, policy="round_robin")
    sequence = open_sequence(loop, 4 * BLOCK_SIZE, home=1)
    place(loop, sequence)
    grow(loop, sequence, 2)

    assert instances_of(sequence) == [1, 2, 0, 1, 2, 0]


def test_random_placement_uses_every_instance_and_repeats() -> None:
    def run() -> list[int]:
        loop = Loop(3, 32, prefill_tiles=32, policy="random")
        sequence = open_sequence(loop, 20 * BLOCK_SIZE)
        place(loop, sequence)
        grow(loop, sequence, 10)
        return instances_of(sequence)

    assert set(run()) == {0, 1, 2}
    assert run() == run()


@pytest.mark.parametrize("policy", ["home", "round_robin", "random"])
def test_growing_takes_every_block_there_is_and_then_refuses(policy: Any) -> None:
    loop = Loop(3, 2, policy=policy)
    sequence = open_sequence(loop, 4)
    grow(loop, sequence, 6)

    assert sorted(instances_of(sequence)) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(OutOfBlocks, match="needed 1 blocks|no instance has a block to give"):
        grow(loop, sequence)
    loop.coordinator.check()


def test_growing_at_home_comes_first() -> None:
    loop = Loop(2, 2)
    sequence = open_sequence(loop, 4, home=1)
    grow(loop, sequence, 3)

    assert instances_of(sequence) == [1, 1, 0]


@settings(deadline=None, max_examples=60)
@given(
    num_instances=st.integers(1, 3),
    num_blocks=st.integers(1, 6),
    tile=st.integers(1, 6),
    prefill_tiles=st.integers(1, 4),
    policy=st.sampled_from(["home", "round_robin", "random"]),
    pooling=st.booleans(),
    prompt_len=st.integers(2, 60),
)
def test_spans_follow_each_other_on_the_blocks_that_receive_them(
    num_instances: int,
    num_blocks: int,
    tile: int,
    prefill_tiles: int,
    policy: Any,
    pooling: bool,
    prompt_len: int,
) -> None:
    loop = Loop(
        num_instances,
        num_blocks,
        tile=tile,
        prefill_tiles=prefill_tiles,
        policy=policy,
        pooling=pooling,
    )
    sequence = open_sequence(loop, prompt_len)
    room = loop.capacity
    while sequence.num_computed < min(prompt_len, room):
        spans, _ = place(loop, sequence)
        assert spans
        used = [0] * num_instances
        for span in spans:
            assert span.start == sequence.num_computed
            positions = range(span.start, span.start + span.count)
            assert {sequence.table.place_of(at).instance for at in positions} == {span.instance}
            used[span.instance] += -(-span.count // tile)
            sequence.num_computed += span.count
        assert max(used) <= prefill_tiles
        assert sequence.table.capacity - sequence.num_computed < BLOCK_SIZE
        loop.coordinator.beat()
        loop.coordinator.check()
    if prompt_len > room:
        assert place(loop, sequence) == Spans((), True)
