"""On which instances a sequence's next tokens are computed, hence where their blocks are."""

import random
from typing import NamedTuple

from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.engine.budget import Budget
from distkv_jax.engine.config import Placement
from distkv_jax.engine.sequence import Sequence
from distkv_jax.errors import OutOfBlocks


class Span(NamedTuple):
    """Consecutive prompt tokens for one instance."""

    instance: int
    start: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.count: unused here)


class Spans(NamedTuple):
    """Where a prompt continues; `is_out_of_blocks` when blocks, not budget, ended it."""

    spans: tuple[Span, ...]
    is_out_of_blocks: bool


class Placer:
    """Turns a placement policy into blocks that are taken.

    Every block but a sequence's last is full, so a sequence changes instance at block borders only.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        num_instances: int,
        policy: Placement,
        spread_tokens: int,
        step_tokens: int,
        seed: int,
    ) -> None:
        self.coordinator = coordinator
        self.num_instances = num_instances
        self.policy = policy
        self.spread_tokens = spread_tokens
        self.step_tokens = step_tokens
        self._random = random.Random(seed)

    def order(self, sequence: Sequence) -> list[int]:
        """Instances to try for a sequence's next block, best first."""
        home = sequence.home
        if self.policy == "random":
            return self._random.sample(range(self.num_instances), self.num_instances)
        if self.policy == "round_robin":
            first = home + len(sequence.table.places)
            return [(first + offset) % self.num_instances for offset in range(self.num_instances)]
        coordinator = self.coordinator
        # A victim's blocks, freed in this very step, must be seen.
        coordinator.beat()
        return [home, *coordinator.gmanager.propose_creditors(home, coordinator.num_free)]

    def grow(self, sequence: Sequence) -> None:
        """Take one more block for a sequence.

        Raises:
            OutOfBlocks: No instance has one for it; nothing was taken.
        """
        if self.policy == "home":
            sequence.table.append(self.coordinator.grow(sequence.key, 1))
            return
        for instance in self.order(sequence):
            try:
                places = self.coordinator.take(sequence.key, 1, instance=instance)
            except OutOfBlocks:
                continue
            sequence.table.append(places)
            return
        raise OutOfBlocks("no instance has a block to give", needed=1, free=0)

    def place_prompt(self, sequence: Sequence, budget: Budget) -> Spans:
        """Take blocks for the next part of a prompt, and budget for computing it.

        A prompt of up to `spread_tokens` stays on one instance while that has blocks: it costs no
        communication. A longer one uses the compute of every instance with budget, in whole blocks.
        """
        if not budget.take_entries(sequence.table):
            return Spans((), False)
        spans: list[Span] = []
        at, end = sequence.num_computed, len(sequence.tokens)
        is_out_of_blocks = False
        while at < end:
            if at < sequence.table.capacity:
                span = self._fill_last_block(sequence, at, end, budget)
            else:
                span, is_out_of_blocks = self._take_blocks(sequence, at, end, budget)
            if span is None:
                break
            outputs = span.count if sequence.wants_prompt_logprobs else 1
            budget.take_tiles(span.instance, span.count, outputs)
            spans.append(span)
            at += span.count
        if not spans:
            budget.give_entries(sequence.table)
        return Spans(tuple(spans), is_out_of_blocks)

    def _fill_last_block(
        self, sequence: Sequence, at: int, end: int, budget: Budget
    ) -> Span | None:
        """Continue in the partial last block, which is where it is."""
        instance = sequence.table.place_of(at).instance
        count = min(end, sequence.table.capacity) - at
        count = min(count, self._affordable(sequence, instance, budget))
        return Span(instance, at, count) if count else None

    def _take_blocks(
        self, sequence: Sequence, at: int, end: int, budget: Budget
    ) -> tuple[Span | None, bool]:
        """Begin new blocks on the first instance that has both budget and blocks."""
        block_size = sequence.table.block_size
        may_spread = self.policy != "home" or end > self.spread_tokens
        lendable = self.coordinator.lendable(sequence.home)
        for instance in self.order(sequence):
            count = min(end - at, self._affordable(sequence, instance, budget))
            if not count:
                if may_spread:
                    continue
                return None, False
            room = min(lendable[instance], budget.entries[instance])
            if not room:
                continue
            if self.policy != "home":
                count = min(count, block_size)
            if at + count < end and count > block_size:
                count -= count % block_size
            wanted = min(-(-count // block_size), room)
            sequence.table.append(self.coordinator.take(sequence.key, wanted, instance=instance))
            budget.entries[instance] -= wanted
            return Span(instance, at, min(count, wanted * block_size)), False
        # Where blocks are left and only this step's budget is not, the next step goes on.
        return None, not any(lendable)

    def _affordable(self, sequence: Sequence, instance: int, budget: Budget) -> int:
        """Tokens of a prompt that an instance can still compute in this step."""
        tokens = budget.prefill_tiles[instance] * budget.tile
        if sequence.wants_prompt_logprobs:
            return min(tokens, budget.scoring_rows(instance))
        return tokens if budget.output_rows[instance] else 0
