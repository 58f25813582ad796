"""Moving blocks between steps: planned by the coordinator, copied on the devices, in a budget.

Source: Infinite-LLM, arXiv 2401.02669: KV moves in the background, so many tokens a step. All of it
happens at a step boundary: what is planned is committed, copied in device program order, and named
by the tables before the next step is planned.
"""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.mover import Transfer, by_sequence
from distkv_jax.cache.plan import Plan
from distkv_jax.cache.view import View, view_of
from distkv_jax.engine.moves import Copy
from distkv_jax.engine.pressure import Pressure
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.sequence import Sequence

BURST_STEPS = 64
"""Steps whose unused budget is kept; at least what a circle through all instances takes."""


@runtime_checkable
class Proposer(Protocol):
    """Proposes moves, as `cache.planner.Planner` does."""

    def plan(self, view: View) -> Plan:
        """Propose moves that make the next steps faster, the best first."""
        ...


class MoveStats(NamedTuple):
    """Blocks moved since the engine started, by what asked for it.

    Attributes:
        circles: Called home out of debt circles.
        recalled: Sent away because a creditor needed its memory.
        planned: Placed better by the planner.
    """

    circles: int = 0
    recalled: int = 0
    planned: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Rebalancer:
    """Runs the moves between two steps. The engine thread owns it.

    Calls debt circles home, recalls loans of creditors that need their memory, and follows the
    planner. A budget in tokens accrues with every step; only a sequence that could not go on
    otherwise may overdraw it.

    Attributes:
        stats: Blocks moved so far.
        dispatch_s: Seconds spent on handing copies to the devices, which may wait for a step.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        runner: Runner,
        pressure: Pressure,
        *,
        block_size: int,
        tokens_per_step: int,
        period: int,
        planner: Proposer | None,
        explain: Callable[[str], None] | None = None,
    ) -> None:
        """Move nothing yet.

        Args:
            coordinator: Plans and commits.
            runner: Copies.
            pressure: What the scheduler asks for.
            block_size: Tokens of a block.
            tokens_per_step: Tokens of KV that a step may move; 0 for none but urgent ones.
            period: Steps between two plans.
            planner: Proposes moves that make steps faster; None for none.
            explain: Told what each plan that moves something is good for, line by line.
        """
        self.stats = MoveStats()
        self.dispatch_s = 0.0
        self.coordinator = coordinator
        self.runner = runner
        self.pressure = pressure
        self.block_size = block_size
        self.tokens_per_step = tokens_per_step
        self.period = period
        self.planner = planner
        self.explain = explain
        self._tokens = 0
        self._orders: list[MoveKVCache] = []
        self._num_steps = 0
        self._running: dict[Hashable, Sequence] = {}
        coordinator.mover.movable = self._movable

    def step(self, running: Iterable[Sequence]) -> None:
        """Move what is worth it now, before the next step is planned.

        Args:
            running: Sequences that hold blocks; their tables follow what moves.

        Raises:
            StepFailed: A copy could not be started; pools and state are lost.
        """
        self.coordinator.tick()
        self._num_steps += 1
        self._running = {sequence.key: sequence for sequence in running}
        self._tokens = min(self._tokens + self.tokens_per_step, self._most)
        is_due = self._num_steps % self.period == 0
        if is_due or self.pressure.wanted:
            self._cancel_circles()
        self._recall()
        if is_due and self.planner is not None:
            self._orders = self._plan(self.planner)
        if self._orders and self._limit:
            self._follow_orders()
        self.pressure.next_step()

    @property
    def _most(self) -> int:
        """Tokens of budget that are kept, and that urgent moves may overdraw."""
        if not self.tokens_per_step:
            return 0
        circle = self.coordinator.num_instances * self.block_size
        return max(BURST_STEPS * self.tokens_per_step, circle)

    @property
    def _limit(self) -> int:
        """Blocks that the budget pays for."""
        return max(0, self._tokens // self.block_size)

    def _cancel_circles(self) -> None:
        if self._limit:
            moved = self._carry_out(self.coordinator.cancel_circles(self._limit))
            self.stats = self.stats._replace(circles=self.stats.circles + moved)

    def _recall(self) -> None:
        for instance, count in self.pressure.wanted.items():
            # A debt home takes a second block of another's debt along the way, and so on.
            least = self.coordinator.num_instances if instance in self.pressure.urgent else 0
            limit = max(self._limit, least)
            if not limit:
                continue
            before = self.coordinator.rmanagers[instance].num_free
            moved = self._carry_out(self.coordinator.recall(instance, count, limit))
            self.stats = self.stats._replace(recalled=self.stats.recalled + moved)
            freed = self.coordinator.rmanagers[instance].num_free - before
            if instance in self.pressure.urgent:
                self.pressure.relieved(instance, freed)

    def _plan(self, planner: Proposer) -> list[MoveKVCache]:
        """Tell gManager how many sequences run where, and ask what should move."""
        batches = [0] * self.coordinator.num_instances
        for sequence in self._running.values():
            if sequence.table.places:
                batches[sequence.table.places[-1].instance] += 1
        self.coordinator.set_batches(batches)
        self.coordinator.beat()
        plan = planner.plan(view_of(self.coordinator.gmanager))
        if plan.moves and self.explain is not None:
            for line in plan.lines():
                self.explain(line)
        return list(plan.orders)

    def _follow_orders(self) -> None:
        """Carry out what the budget allows of the last plan; the refused wait for the next."""
        orders, self._orders = self._orders, []
        for index, order in enumerate(orders):
            if not self._limit:
                self._orders = orders[index:]
                return
            part = dataclasses.replace(order, num_blocks=min(order.num_blocks, self._limit))
            moved = self._carry_out(self.coordinator.move([part], self._limit))
            self.stats = self.stats._replace(planned=self.stats.planned + moved)
            if moved == part.num_blocks < order.num_blocks:
                rest = dataclasses.replace(order, num_blocks=order.num_blocks - moved)
                self._orders = [rest, *orders[index + 1 :]]
                return

    def _carry_out(self, transfers: Iterable[Transfer]) -> int:
        """Commit, copy, and tell the tables; returns the blocks moved."""
        done = self.coordinator.commit(tuple(transfers))
        if not done:
            return 0
        self._tokens = max(self._tokens - len(done) * self.block_size, -self._most)
        for key, moves in by_sequence(done).items():
            self._running[key].table.relocate(moves)
        begin = time.perf_counter()
        self.runner.move([Copy(transfer.source, transfer.destination) for transfer in done])
        self.dispatch_s += time.perf_counter() - begin
        return len(done)

    def _movable(self, key: Hashable) -> list[Place]:
        """The full blocks of a sequence, whose tokens are computed by the steps under way."""
        sequence = self._running.get(key)
        if sequence is None:
            return []
        table = sequence.table
        return table.places[table.num_dropped : sequence.num_computed // self.block_size]
