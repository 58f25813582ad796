"""Which tokens run in the next step, on which instance, with which blocks.

Decides and accounts; it knows no device. In reading order: running sequences decode, oldest first;
running prompts continue; waiting requests are admitted while their prompt's blocks can be had.
"""

import bisect
import heapq
from collections.abc import Iterator
from typing import NamedTuple

from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.engine.budget import Budget
from distkv_jax.engine.host_tier import HostTier
from distkv_jax.engine.placer import Placer
from distkv_jax.engine.pressure import Pressure
from distkv_jax.engine.sequence import Sequence, State
from distkv_jax.engine.shapes import ShapeTable
from distkv_jax.errors import OutOfBlocks


class Piece(NamedTuple):
    """Consecutive tokens of one sequence that one instance computes in a step.

    Attributes:
        sequence: Whose tokens.
        instance: Where they are computed and their K and V written.
        start: Position of the first.
        count: How many.
        samples: Whether the last one's logits give the sequence's next token.
        scores: How many of the positions are asked for their prompt log-probability.
    """

    sequence: Sequence
    instance: int
    start: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.count: unused here)
    samples: bool
    scores: int


class StepPlan(NamedTuple):
    """What runs in one step.

    Attributes:
        decodes: Pieces of one token.
        prefills: Longer pieces; several of one sequence follow each other.
        admitted: Sequences that got a slot in this step.
    """

    decodes: tuple[Piece, ...]
    prefills: tuple[Piece, ...]
    admitted: tuple[Sequence, ...]


class Scheduler:
    """The queue, the running set, and their blocks.

    Invariant: `waiting` and `running` are sorted by `order` and disjoint; a sequence holds blocks
    and a slot exactly while it is in `running`.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        placer: Placer,
        shapes: ShapeTable,
        pressure: Pressure,
        *,
        num_slots: int,
        window: int | None,
        tier: HostTier | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.tier = HostTier(coordinator.num_instances) if tier is None else tier
        self.placer = placer
        self.shapes = shapes
        self.pressure = pressure
        self.window = window
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._free_slots = list(range(num_slots))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, behind all that come before it in `order`."""
        sequence.state = State.WAITING
        bisect.insort(self.waiting, sequence, key=lambda other: other.order)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give back what it holds."""
        self.tier.forget(sequence.key)
        if sequence.state is State.WAITING:
            at = bisect.bisect_left(self.waiting, sequence.order, key=lambda other: other.order)
            del self.waiting[at]
        elif sequence.slot >= 0:
            self.running.remove(sequence)
            self.coordinator.close(sequence.key)
            heapq.heappush(self._free_slots, sequence.slot)
            sequence.slot = -1

    def preempt(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds; it is queued again once nothing is in flight.

        Its blocks are as they are until the next step: that long they can be saved.
        """
        self.release(sequence)
        self.tier.save(sequence)
        sequence.restart()
        if sequence.num_pending:
            sequence.state = State.PREEMPTED
        else:
            self.add(sequence)

    def schedule(self) -> StepPlan:
        """Decide a step. Blocks are taken and `num_computed` advanced as if it had run."""
        budget = Budget(self.shapes, self.placer.num_instances, len(self.running))
        decodes: list[Piece] = []
        prefills: list[Piece] = []
        num_preemptions = self.num_preemptions
        for sequence in tuple(self.running):
            # A victim of an older one in this loop is no longer running.
            if sequence.state is State.RUNNING and not sequence.is_sampled_out:
                self._advance(sequence, budget, decodes, prefills, may_preempt=True)
        admitted = []
        # After a preemption nothing is admitted: what was just freed is for the older ones.
        if self.num_preemptions == num_preemptions:
            for sequence in self._admissible():
                admitted.append(sequence)
                self._advance(sequence, budget, decodes, prefills, may_preempt=False)
        return StepPlan(tuple(decodes), tuple(prefills), tuple(admitted))

    def _advance(
        self,
        sequence: Sequence,
        budget: Budget,
        decodes: list[Piece],
        prefills: list[Piece],
        *,
        may_preempt: bool,
    ) -> None:
        """Plan a sequence's next tokens; only younger ones, not planned yet, are preempted."""
        self._leave_window(sequence)
        if sequence.num_left == 1:
            decodes.extend(self._decode(sequence, budget, may_preempt))
        else:
            prefills.extend(self._prefill(sequence, budget, may_preempt))

    def _admissible(self) -> Iterator[Sequence]:
        """Move waiting sequences to the running set while slots and blocks for them can be had."""
        promised = [0] * self.coordinator.num_instances
        for sequence in self.running:
            if not sequence.is_sampled_out:
                promised[sequence.home] += self._blocks_to_come(sequence)
        index = 0
        while index < len(self.waiting) and self._free_slots:
            sequence = self.waiting[index]
            parent = sequence.parent
            if parent is not None and self._is_preparing(parent):
                index += 1
                continue
            kept = self.tier.find(sequence)
            # What has left the window is shared with nobody.
            shared = () if kept is not None and kept.num_dropped else self._sharable(parent)
            needed = self._blocks_to_come(sequence) - len(shared)
            if parent is not None and shared:
                # A sample is at home where the blocks are that it shares.
                home = parent.home
            elif kept is not None and needed <= self.coordinator.room(kept.home, reserved=promised):
                home = kept.home
            else:
                home = self.coordinator.choose_home(needed, reserved=promised)
            if needed > self.coordinator.room(home, reserved=promised):
                return
            del self.waiting[index]
            self._start(sequence, home, shared)
            yield sequence
            # Its first blocks are taken by now.
            promised[home] += self._blocks_to_come(sequence)

    def _start(self, sequence: Sequence, home: int, shared: tuple[Place, ...]) -> None:
        sequence.state = State.RUNNING
        sequence.home = home
        sequence.slot = heapq.heappop(self._free_slots)
        self.coordinator.open(sequence.key, sequence.key.request_id, home)
        bisect.insort(self.running, sequence, key=lambda other: other.order)
        if shared:
            self.coordinator.share(sequence.key, shared)
            sequence.table.append(shared)
            sequence.num_computed = sequence.table.capacity
            sequence.num_shared_tokens = sequence.num_computed
        self.tier.restore(sequence, self.coordinator)

    def _is_preparing(self, parent: Sequence) -> bool:
        """Whether a parent is still computing the prompt blocks that its siblings will share."""
        return parent.state is not State.FINISHED and parent.num_computed < shared_len(parent)

    def _sharable(self, parent: Sequence | None) -> tuple[Place, ...]:
        """The parent's full prompt blocks; the tail is computed by each sample itself."""
        if parent is None or parent.state is not State.RUNNING or parent.table.num_dropped:
            return ()
        return tuple(parent.table.places[: shared_len(parent) // parent.table.block_size])

    def _blocks_to_come(self, sequence: Sequence) -> int:
        """Blocks a sequence still needs for the tokens it has."""
        block_size = sequence.table.block_size
        wanted = -(-sequence.num_tokens // block_size)
        if self.window is not None:
            in_window = -(-(self.window + self.placer.step_tokens) // block_size) + 2
            most = min(in_window, self.coordinator.capacity(max(sequence.home, 0)))
            wanted = min(wanted, most + sequence.table.num_dropped)
        return max(0, wanted - len(sequence.table.places))

    def _decode(self, sequence: Sequence, budget: Budget, may_preempt: bool) -> list[Piece]:
        """Compute a sequence's one missing token, growing it by a block where needed."""
        start = sequence.num_computed
        while sequence.table.capacity <= start:
            try:
                self.placer.grow(sequence)
            except OutOfBlocks:
                if not may_preempt or self.pressure.wait(sequence.home):
                    return []
                if not self._make_room(sequence):
                    return []
            else:
                self._note_pressure(sequence)
        instance = sequence.table.place_of(start).instance
        if not budget.take_decode(instance, sequence.table):
            return []
        sequence.num_computed += 1
        sequence.num_pending += 1
        return [Piece(sequence, instance, start, 1, True, 0)]

    def _prefill(self, sequence: Sequence, budget: Budget, may_preempt: bool) -> list[Piece]:
        """Continue a prompt with as many tokens as instances have budget and blocks for."""
        spans, is_out_of_blocks = self.placer.place_prompt(sequence, budget)
        while not spans and is_out_of_blocks and may_preempt:
            if self.pressure.wait(sequence.home) or not self._make_room(sequence):
                break
            spans, is_out_of_blocks = self.placer.place_prompt(sequence, budget)
        pieces = []
        for span in spans:
            end = span.start + span.count
            samples = end == len(sequence.tokens)
            scores = self._num_scores(sequence, span.start, span.count)
            pieces.append(Piece(sequence, span.instance, span.start, span.count, samples, scores))
            sequence.num_computed = end
            sequence.num_pending += samples
        return pieces

    def _num_scores(self, sequence: Sequence, start: int, count: int) -> int:
        if not sequence.wants_prompt_logprobs:
            return 0
        return max(0, min(start + count, sequence.prompt_len - 1) - start)

    def _leave_window(self, sequence: Sequence) -> None:
        """Release blocks that no later token of the sequence can see."""
        if self.window is not None:
            first_visible = sequence.num_computed - self.window + 1
            dropped = sequence.table.drop_before(first_visible)
            if dropped:
                self.coordinator.release(sequence.key, dropped)

    def _note_pressure(self, sequence: Sequence) -> None:
        """Where a sequence has just borrowed, its home may want back what it lent itself."""
        if sequence.table.places[-1].instance != sequence.home and self.placer.policy == "home":
            self.pressure.note(sequence.home)

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt the latest arrival whose blocks can help; False when that is itself."""
        victim = next(
            other
            for other in reversed(self.running)
            if self.coordinator.is_pooled or other.home == sequence.home
        )
        self.num_preemptions += 1
        self.preempt(victim)
        return victim is not sequence


def shared_len(parent: Sequence) -> int:
    """Prompt tokens in full blocks that samples share; at least one token is left to compute."""
    block_size = parent.table.block_size
    return (parent.prompt_len - 1) // block_size * block_size
