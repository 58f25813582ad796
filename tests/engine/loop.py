"""An engine without devices: a scheduler whose steps always work, checked after each of them."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.engine.config import Placement
from distkv_jax.engine.encode import Encoded, Encoder
from distkv_jax.engine.host_tier import HostTier
from distkv_jax.engine.placer import Placer
from distkv_jax.engine.pressure import Pressure
from distkv_jax.engine.rebalance import Proposer, Rebalancer
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.engine.scheduler import Piece, Scheduler, StepPlan
from distkv_jax.engine.sequence import FinishReason, Sequence, SequenceKey, State
from distkv_jax.engine.shapes import ShapeTable
from tests.cache.faulty import Fate
from tests.engine.contents import Contents

BLOCK_SIZE = 4
MANY_STEPS = 2000


def make_sequence(
    prompt_len: int = 5,
    max_tokens: int = 3,
    *,
    name: str = "request",
    index: int = 0,
    arrival: int = 0,
    parent: Sequence | None = None,
    block_size: int = BLOCK_SIZE,
    **params: Any,
) -> Sequence:
    """Make a sequence that waits to be added."""
    return Sequence(
        key=SequenceKey(name, index),
        order=(0, arrival, index),
        prompt=tuple(range(prompt_len)),
        params=SamplingParams(max_tokens=max_tokens, **params),
        bad_words=(),
        max_tokens=max_tokens,
        stop_ids=frozenset(),
        seed=7 + arrival,
        block_size=block_size,
        parent=parent,
    )


class Loop:
    """Adds, steps and cancels as the engine does; every sampled token is 0, read a step late.

    `step` checks what must hold after every step of any history, and gives what it encoded to
    `inspect` while the sequences are as they were then.
    """

    def __init__(
        self,
        num_instances: int = 1,
        num_blocks: int = 8,
        *,
        num_slots: int = 4,
        tile: int = 4,
        prefill_tiles: int = 2,
        window: int | None = None,
        policy: Placement = "home",
        pooling: bool = True,
        lend_cap: int | None = None,
        spread_tokens: int = 8,
        move_tokens: int = 0,
        planner: Proposer | None = None,
        host_blocks: int = 0,
        fate: Callable[[], Fate] = lambda: "arrives",
        inspect: Callable[[StepPlan, Encoded], None] | None = None,
    ) -> None:
        self.num_instances = num_instances
        self.num_blocks = num_blocks
        self.num_slots = num_slots
        self.window = window
        self.shapes = ShapeTable(
            max_decode_rows=num_slots,
            max_prefill_tiles=prefill_tiles,
            tile=tile,
            entries=2 * num_blocks,
            instances=num_instances,
            pooling=pooling,
        )
        self.coordinator = Coordinator(num_instances, num_blocks, lend_cap, pooling)
        self.coordinator.beat()
        placer = Placer(
            self.coordinator,
            num_instances=num_instances,
            policy=policy,
            spread_tokens=spread_tokens,
            step_tokens=prefill_tiles * tile * num_instances,
            seed=0,
        )
        pressure = Pressure(self.coordinator, patience=1)
        self.contents = Contents(BLOCK_SIZE, num_instances, host_blocks, fate)
        self.tier = HostTier(num_instances, host_blocks)
        self.rebalancer = Rebalancer(
            self.coordinator,
            self.contents,
            pressure,
            block_size=BLOCK_SIZE,
            tokens_per_step=move_tokens,
            period=2,
            planner=planner,
        )
        self.scheduler = Scheduler(
            self.coordinator,
            placer,
            self.shapes,
            pressure,
            num_slots=num_slots,
            window=window,
            tier=self.tier,
        )
        self.encoder = Encoder(
            self.shapes,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            num_slots=num_slots,
            window=window,
        )
        self.inspect = inspect
        self.sequences: list[Sequence] = []
        self._epochs: dict[tuple[SequenceKey, int, Place], int] = {}
        self.in_flight: StepPlan | None = None
        self.num_steps = 0

    @property
    def capacity(self) -> int:
        """KV slots that one sequence could have."""
        return self.coordinator.capacity(0) * BLOCK_SIZE

    @property
    def has_work(self) -> bool:
        """Whether something runs, waits or is still to be read."""
        return self.in_flight is not None or any(
            sequence.state is not State.FINISHED for sequence in self.sequences
        )

    def add(
        self, prompt_len: int, max_tokens: int = 3, *, num_samples: int = 1, **params: Any
    ) -> list[Sequence]:
        """Queue a request's sequences."""
        arrival = len(self.sequences)
        added: list[Sequence] = []
        for index in range(num_samples):
            parent = added[0] if added else None
            added.append(
                make_sequence(
                    prompt_len,
                    max_tokens,
                    name=f"request-{arrival}",
                    index=index,
                    arrival=arrival,
                    parent=parent,
                    **params,
                )
            )
            self.scheduler.add(added[-1])
        self.sequences += added
        return added

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End sequences from outside."""
        for sequence in sequences:
            if sequence.state is not State.FINISHED:
                self.scheduler.release(sequence)
                sequence.finish(FinishReason.CANCELLED)

    def step(self) -> StepPlan:
        """Plan a step, then read the one before."""
        assert self.num_steps < MANY_STEPS, "livelock"
        self.rebalancer.step(self.scheduler.running)
        self.tier.listen(self.contents.hear())
        self.check()
        before = [(sequence, sequence.home) for sequence in self.scheduler.running]
        plan = self.scheduler.schedule()
        self._check_preemptions(before, plan)
        self._check_plan(plan)
        self.carry_out()
        previous, self.in_flight = self.in_flight, None
        if plan.decodes or plan.prefills:
            self.in_flight = plan
            self.contents.run(pieces_of(plan), self.window)
            encoded = self.encoder.encode(plan, self.num_instances)
            if self.inspect is not None:
                self.inspect(plan, encoded)
        for piece in () if previous is None else pieces_of(previous):
            self._read(piece)
        self.coordinator.beat()
        self.check()
        self.num_steps += 1
        return plan

    def run(self) -> None:
        """Step until all is done, and check that nothing is held then."""
        while self.has_work:
            self.step()
        self.carry_out()
        self.coordinator.check_idle()
        self.tier.check_idle(self.contents.host_pools)

    def carry_out(self) -> None:
        """Tell the devices what concerns host memory."""
        for order in self.tier.take_orders():
            self.contents.order(order)

    def check(self) -> None:
        """Verify the invariants of `Scheduler` and `Sequence`, and the coordinator's."""
        self.coordinator.check()
        for pool in self.contents.host_pools:
            pool.check()
        self._check_epochs()
        running, waiting = self.scheduler.running, self.scheduler.waiting
        for group in (running, waiting):
            assert all(a.order < b.order for a, b in pairwise(group))
        assert not {sequence.key for sequence in running} & {sequence.key for sequence in waiting}
        assert all(sequence.state is State.RUNNING for sequence in running)
        assert all(sequence.state is State.WAITING for sequence in waiting)
        slots = [sequence.slot for sequence in running]
        assert len(set(slots)) == len(slots) and set(slots) <= set(range(self.num_slots))
        for sequence in self.sequences:
            is_running = sequence in running
            assert is_running == (sequence.state is State.RUNNING)
            if is_running:
                self._check_running(sequence)
            elif sequence.state is not State.FINISHED:
                assert sequence.slot == sequence.home == -1 and not sequence.table.places
        held = {place for sequence in running for place in sequence.table.held}
        assert len(held) == self.num_instances * self.num_blocks - self.coordinator.num_free

    def _check_epochs(self) -> None:
        """Verify that no table names a block that changed hands since the table got it."""
        # A sequence may get back as a later block what has just left its window. What two moves
        # of one step took away and brought back is the table's again.
        moved, self.contents.moved = self.contents.moved, set()
        held = [
            (one.key, index, place)
            for one in self.scheduler.running
            for index, place in enumerate(one.table.held, start=one.table.num_dropped)
        ]
        before = {named: epoch for named, epoch in self._epochs.items() if named[2] not in moved}
        self._epochs = {
            named: before.get(named, self.coordinator.epoch(named[2])) for named in held
        }
        self.coordinator.check_plan(
            (key, place, epoch) for (key, _, place), epoch in self._epochs.items()
        )

    def _check_running(self, sequence: Sequence) -> None:
        assert sequence.num_computed < sequence.num_tokens
        assert sequence.num_computed <= sequence.table.capacity
        held = sequence.table.held
        for rmanager in self.coordinator.rmanagers:
            blocks = [place.index for place in held if place.instance == rmanager.instance]
            names = {holder.sequence: holder for holder in rmanager.holders}
            assert (sequence.key in names) == bool(blocks)
            if blocks:
                rmanager.check_held(names[sequence.key], blocks)
        if not self.coordinator.is_pooled:
            assert {place.instance for place in held} <= {sequence.home}

    def _check_preemptions(self, before: list[tuple[Sequence, int]], plan: StepPlan) -> None:
        """Verify that victims are the latest arrivals of those whose blocks are of use."""
        lost = [(one, home) for one, home in before if one.state is not State.RUNNING]
        assert not lost or not plan.admitted, "admitted after a preemption"
        for victim, home in lost:
            kept = [
                one
                for one, its_home in before
                if one.state is State.RUNNING and (self.coordinator.is_pooled or its_home == home)
            ]
            assert kept, "the oldest preempted itself: it will do so again"
            assert all(one.order < victim.order for one in kept)

    def _check_plan(self, plan: StepPlan) -> None:
        assert all(piece.count == 1 for piece in plan.decodes)
        for sequence in self.sequences:
            pieces = [piece for piece in pieces_of(plan) if piece.sequence is sequence]
            for piece in pieces:
                assert sequence.state is State.RUNNING
                positions = range(piece.start, piece.start + piece.count)
                assert {sequence.table.place_of(at).instance for at in positions} == {
                    piece.instance
                }
                # The token that it samples, if it does, is counted by now.
                assert positions[-1] + 1 == sequence.num_tokens - 1 or not piece.samples
                assert positions[-1] + 1 < sequence.num_tokens
            for piece, following in pairwise(pieces):
                assert following.start == piece.start + piece.count
            if pieces:
                assert pieces[-1].start + pieces[-1].count == sequence.num_computed

    def _read(self, piece: Piece) -> None:
        sequence = piece.sequence
        if sequence.state is State.FINISHED:
            return
        for at in range(piece.start, piece.start + piece.scores):
            if at == len(sequence.prompt_logprobs):
                sequence.prompt_logprobs.append({})
        if not piece.samples:
            return
        sequence.num_pending -= 1
        sequence.tokens.append(0)
        if len(sequence.output_tokens) >= sequence.max_tokens:
            sequence.finish(FinishReason.LENGTH)
            self.scheduler.release(sequence)
        elif sequence.state is State.PREEMPTED and not sequence.num_pending:
            self.scheduler.add(sequence)


def instances_of(sequence: Sequence) -> list[int]:
    """Instance of each block, in token order."""
    return [place.instance for place in sequence.table.places]


def pieces_of(plan: StepPlan) -> tuple[Piece, ...]:
    """List what a step computes."""
    return (*plan.decodes, *plan.prefills)


def is_prefilled(sequence: Sequence) -> bool:
    """Say whether a sequence's whole prompt is computed."""
    return sequence.num_computed >= sequence.prompt_len
