"""What a host said to have is fetched, everything else is computed again; nothing is kept for long.

`contents.Contents` verifies that every token reads what it may see.
"""

from collections.abc import Callable
from typing import Any

import pytest

from distkv_jax.cache.messages import Saved
from distkv_jax.engine.commands import Fetch, Forget, HostCommand, Save
from distkv_jax.engine.scheduler import StepPlan
from distkv_jax.engine.sequence import Sequence
from distkv_jax.errors import InvariantError
from tests.cache.faulty import Fate
from tests.engine.loop import BLOCK_SIZE, Loop, instances_of, pieces_of


class Watched(Loop):
    """Notes what is ordered and how much is computed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.ordered: list[HostCommand] = []
        self.num_computed = 0
        super().__init__(*args, **settings)
        order = self.contents.order

        def note(command: HostCommand) -> None:
            self.ordered.append(command)
            order(command)

        self.contents.order = note

    def step(self) -> StepPlan:
        plan = super().step()
        self.num_computed += sum(piece.count for piece in pieces_of(plan))
        return plan

    def of(self, kind: type[HostCommand]) -> list[HostCommand]:
        return [command for command in self.ordered if isinstance(command, kind)]


def run(host_blocks: int, fate: Callable[[], Fate] = lambda: "arrives", **settings: Any) -> Watched:
    """Three sequences on six blocks, which hold two of them at the end."""
    loop = Watched(1, 6, host_blocks=host_blocks, fate=fate, **settings)
    for _ in range(3):
        loop.add(5, 12)
    loop.run()
    return loop


def test_what_was_saved_is_not_computed_again() -> None:
    without, with_host = run(0), run(30)

    assert with_host.scheduler.num_preemptions > 0
    assert with_host.tier.num_fetched_tokens > 0
    # Each token once, but for the last of each sequence, which nobody reads.
    assert with_host.num_computed == 3 * (5 + 12 - 1) < without.num_computed
    assert without.ordered == []


def test_a_refused_save_is_computed_again_and_forgotten() -> None:
    loop = run(1)

    assert loop.of(Save) and not loop.of(Fetch)
    assert len(loop.of(Forget)) == len(loop.of(Save))
    assert loop.num_computed == run(0).num_computed


@pytest.mark.parametrize("fate", ["is lost", "is late"])
def test_an_answer_that_does_not_come_in_time_is_not_waited_for(fate: Fate) -> None:
    loop = run(30, lambda: fate)

    assert loop.of(Save) and not loop.of(Fetch)
    assert len(loop.of(Forget)) == len(loop.of(Save))
    assert (loop.num_steps, loop.num_computed) == (run(0).num_steps, run(0).num_computed)


def test_an_answer_that_comes_twice_is_one() -> None:
    assert run(30, lambda: "arrives twice").ordered == run(30).ordered


def test_an_answer_about_what_was_forgotten_is_ignored() -> None:
    loop = run(30)

    loop.tier.listen([Saved(instance=0, save_id=1)])

    assert not loop.tier._saved
    loop.tier.check_idle(loop.contents.host_pools)


def make_spread(**settings: Any) -> tuple[Watched, Sequence]:
    """A sequence with three blocks on each of two instances, then preempted."""
    loop = Watched(2, 6, policy="round_robin", host_blocks=9, **settings)
    (sequence,) = loop.add(6 * BLOCK_SIZE - 2, 4)
    while len(sequence.tokens) < 6 * BLOCK_SIZE - 1:
        loop.step()
    loop.scheduler.preempt(sequence)
    return loop, sequence


def test_blocks_go_back_where_they_came_from() -> None:
    loop, sequence = make_spread()
    before = [place.instance for place in loop.tier._kept[sequence.key].places]
    while not loop.of(Fetch):
        loop.step()

    (save,), (fetch,) = loop.of(Save), loop.of(Fetch)
    assert isinstance(save, Save) and isinstance(fetch, Fetch)
    assert list(map(len, save.blocks)) == list(map(len, fetch.blocks)) == [3, 3]
    assert instances_of(sequence)[:6] == before
    assert loop.tier.num_fetched_tokens == 6 * BLOCK_SIZE - 1
    loop.run()


def test_without_the_answer_of_one_host_the_blocks_before_its_first_are_fetched() -> None:
    loop, sequence = make_spread()
    loop.carry_out()
    second = loop.contents._hosts[(sequence.home + 1) % 2].rmanager.instance
    kept = loop.tier._kept[sequence.key]
    first_absent = [place.instance for place in kept.places].index(second)
    loop.contents._said = [
        one for one in loop.contents._said if not isinstance(one, Saved) or one.instance != second
    ]
    while sequence.home < 0:
        loop.step()

    assert loop.tier.num_fetched_tokens == first_absent * BLOCK_SIZE
    loop.run()


def test_an_instance_without_free_blocks_ends_what_is_fetched() -> None:
    loop, sequence = make_spread()
    loop.carry_out()
    loop.tier.listen(loop.contents.hear())
    kept = loop.tier.find(sequence)
    assert kept is not None
    other = kept.places[1].instance
    loop.coordinator.open("greedy", "greedy", other)
    loop.coordinator.take("greedy", 6, instance=other)
    loop.coordinator.open(sequence.key, "request", kept.places[0].instance)
    sequence.home = kept.places[0].instance

    loop.tier.restore(sequence, loop.coordinator)

    assert sequence.num_computed == BLOCK_SIZE
    assert len(sequence.table.places) == 1


def test_a_window_without_all_its_blocks_is_computed_again() -> None:
    loop = Watched(2, 6, policy="round_robin", host_blocks=9, window=9)
    (sequence,) = loop.add(20, 6)
    while len(sequence.tokens) < 21:
        loop.step()
    assert sequence.table.num_dropped
    loop.scheduler.preempt(sequence)
    loop.carry_out()
    answers = [one for one in loop.contents.hear() if isinstance(one, Saved)]
    assert len(answers) == 2

    first = loop.tier._kept[sequence.key].places[0].instance
    answers.sort(key=lambda one: one.instance != first)
    loop.tier.listen(answers[:1])
    assert loop.tier.find(sequence) is None
    loop.tier.listen(answers[1:])
    found = loop.tier.find(sequence)

    assert found is not None and found.num_dropped and found.num_computed == 21
    loop.run()
    assert loop.tier.num_fetched_tokens == 21
    assert loop.num_computed == 25


def test_a_sample_shares_with_its_parent_what_it_can() -> None:
    loop = Watched(1, 12, host_blocks=30)
    parent, child = loop.add(9, 8, num_samples=2)
    while len(child.tokens) < 11:
        loop.step()
    loop.scheduler.preempt(child)
    while not loop.of(Fetch):
        loop.step()

    (fetch,) = loop.of(Fetch)
    assert isinstance(fetch, Fetch)
    assert fetch.blocks[0][:2] == (-1, -1) and -1 not in fetch.blocks[0][2:]
    assert child.table.places[:2] == parent.table.places[:2]
    loop.run()


def test_a_cancelled_sequence_leaves_nothing_in_host_memory() -> None:
    loop, sequence = make_spread()
    loop.carry_out()
    assert all(pool.saves for pool in loop.contents.host_pools)

    loop.cancel([sequence])
    loop.carry_out()

    assert not any(pool.saves for pool in loop.contents.host_pools)
    loop.tier.check_idle(loop.contents.host_pools)


def test_the_audit_finds_what_was_left() -> None:
    loop, _ = make_spread()
    loop.carry_out()

    with pytest.raises(InvariantError, match="idle with saves of 1 sequences"):
        loop.tier.check_idle(loop.contents.host_pools)
    loop.tier.forget_all()
    with pytest.raises(InvariantError, match="holds blocks of saves"):
        loop.tier.check_idle(loop.contents.host_pools)


def test_less_than_a_block_is_not_saved() -> None:
    loop = Watched(1, 6, host_blocks=30)
    (sequence,) = loop.add(2, 4)
    while not sequence.num_computed:
        loop.step()
    loop.scheduler.preempt(sequence)

    assert not loop.tier.orders
    loop.run()


def test_what_hosts_hold_is_known_from_heartbeats() -> None:
    loop, _ = make_spread()
    loop.carry_out()

    assert [one.held for one in loop.tier.usage()] == [0, 0]
    loop.tier.listen(loop.contents.hear())

    assert [one.held for one in loop.tier.usage()] == [3, 3]
    assert [one.free for one in loop.tier.usage()] == [6, 6]
