"""The engine: requests in, updates out, one step at a time; every request ends exactly once."""

import dataclasses
import itertools
import time
from collections.abc import Iterable

from distkv_jax.cache.performance import StepModel
from distkv_jax.cache.usage import Usage
from distkv_jax.engine.admission import Admission
from distkv_jax.engine.collector import Collector
from distkv_jax.engine.encode import Encoded
from distkv_jax.engine.outputs import Update
from distkv_jax.engine.parts import Parts, Renewal
from distkv_jax.engine.rebalance import MoveStats
from distkv_jax.engine.request import Request
from distkv_jax.engine.runner import InFlight
from distkv_jax.engine.sampler_state import slot_row
from distkv_jax.engine.scheduler import StepPlan
from distkv_jax.engine.sequence import FinishReason, Sequence, State
from distkv_jax.errors import InvariantError, StepFailed, WorldLost

MAX_EMPTY_STEPS = 8
"""Steps in a row in which all may wait for recalls: one each is what it takes."""
STEPS_BETWEEN_ARRIVALS = 8
"""Steps that are read before devices that came are taken in: one that comes and goes again and
again must not keep all others from getting on."""
PARKED_POLL_S = 0.02
"""Between two looks where all requests wait for devices to come back."""


@dataclasses.dataclass(slots=True)
class EngineStats:
    """Totals since the engine started.

    Attributes:
        num_steps: Steps dispatched.
        num_spanning_steps: Of those, steps with queries that travelled.
        num_computed_tokens: Tokens computed, recomputed ones included.
        num_prompt_tokens: Prompt tokens of requests that were taken in.
        num_generated_tokens: Tokens given out.
        num_preemptions: Sequences whose blocks were taken for older ones.
        num_fetched_tokens: Tokens of theirs that came back from host memory.
        num_failed_steps: Steps that raised; their sequences were prefilled again.
        moved: Blocks moved between instances, by what asked for it.
        modelled_s: Seconds that all steps take by the planner's model, each as long as its slowest
            instance; 0 where there is no model.
        host_s: Seconds the host spent planning, encoding, dispatching and collecting.
        coordinator_s: Of those, on deciding what moves and on heartbeats, not on copies.
        wait_s: Seconds it waited for the device.
    """

    num_steps: int = 0
    num_spanning_steps: int = 0
    num_computed_tokens: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_fetched_tokens: int = 0
    num_failed_steps: int = 0
    moved: MoveStats = MoveStats()
    modelled_s: float = 0.0
    host_s: float = 0.0
    coordinator_s: float = 0.0
    wait_s: float = 0.0


class Engine:
    """Continuous batching over a pooled KV cache. One thread owns an engine.

    The host runs one step behind the device: a step is planned and dispatched before the tokens of
    the one before are read. A step that raises loses the pools; its sequences are prefilled again
    from their known tokens. Where several processes share the mesh, and one is lost or comes, so
    are all sequences, on parts that `renewal` makes.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        admission: Admission,
        collector: Collector,
        max_step_failures: int,
        renewal: Renewal | None = None,
    ) -> None:
        """Begin with no request.

        Args:
            parts: What belongs to the devices.
            admission: Takes requests in.
            collector: Makes tokens updates.
            max_step_failures: In a row, after which the running requests end with an error.
            renewal: Makes other parts when the devices change; None where they do not.
        """
        self.stats = EngineStats()
        self.admission = admission
        self._collector = collector
        self._max_step_failures = max_step_failures
        self._renewal = renewal
        self._use(parts)
        self._requests: dict[str, tuple[Request, list[Sequence]]] = {}
        self._deadlines: dict[str, float] = {}
        # Requests that the devices that are left cannot hold, and until when they wait for more.
        self._parked: dict[str, float] = {}
        self._in_flight: InFlight | None = None
        self._num_failures_in_a_row = 0
        self._num_empty = 0
        self._num_steps_before_arrivals = 0
        self._is_audited = True

    def _use(self, parts: Parts) -> None:
        self.runner, self.coordinator = parts.runner, parts.coordinator
        self._scheduler, self._encoder = parts.scheduler, parts.encoder
        self._rebalancer, self.step_model = parts.rebalancer, parts.step_model
        self.coordinator.beat()
        self._listen()

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` would do anything."""
        is_busy = bool(self._requests) or self._in_flight is not None
        return is_busy or bool(self._scheduler.tier.orders) or self._is_renewal_due

    @property
    def _is_renewal_due(self) -> bool:
        if self._renewal is None or not self._renewal.is_due:
            return False
        is_waiting = self._parked.keys() == self._requests.keys()
        return self._renewal.is_lost or is_waiting or self._num_steps_before_arrivals <= 0

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    def host_usage(self) -> list[Usage]:
        """List every instance's blocks of host memory by state; none where there are none."""
        # Also when nothing runs: hosts may have answered since the last step.
        self._listen()
        return self._scheduler.tier.usage()

    def submit(self, requests: tuple[Request, ...]) -> None:
        """Queue requests, all or none.

        Raises:
            RequestError: One can never be served, or a live request has its name.
            QueueFull: Too many would wait.
        """
        taken = self.admission.take_in(requests, self._requests.keys(), self._scheduler.waiting)
        for request, sequences in zip(requests, taken, strict=True):
            self._requests[request.request_id] = (request, sequences)
            if request.deadline is not None:
                self._deadlines[request.request_id] = request.deadline
            self.stats.num_prompt_tokens += len(request.prompt_token_ids)
            for sequence in sequences:
                self._collector.begin(sequence)
                self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> list[Update]:
        """End a request's samples and free its blocks; an unknown or ended one is ignored."""
        return self._end_all([request_id], FinishReason.CANCELLED)

    def step(self) -> list[Update]:
        """Plan and dispatch a step, then read the one before.

        Returns:
            What became known: new tokens, ends.

        Raises:
            InvariantError: A promise of ours is broken; stop serving.
            WorldLost: Another process of the mesh is, and it cannot be done without.
        """
        if self._is_renewal_due:
            return self._renew()
        if self._parked.keys() == self._requests.keys() and self._parked:
            time.sleep(PARKED_POLL_S)
            return self._end_overdue()
        begin = time.perf_counter()
        updates = self._end_overdue()
        waited_before = self.stats.wait_s
        failure = None
        try:
            updates += self._advance()
        except StepFailed as error:
            failure = str(error)
        except WorldLost as error:
            if self._renewal is None or not self._renewal.is_lost:
                raise
            failure = str(error)
        # Out here nothing refers to the step's arrays any more, and with them to the devices.
        if failure is not None:
            updates += self._recover(failure)
        self._beat()
        self.stats.num_preemptions = self._scheduler.num_preemptions
        self.stats.num_fetched_tokens = self._scheduler.tier.num_fetched_tokens
        self.stats.moved = self._rebalancer.stats
        waited = self.stats.wait_s - waited_before
        self.stats.host_s += time.perf_counter() - begin - waited
        self._audit_when_idle()
        return updates

    def close(self) -> list[Update]:
        """Cancel what is left, and check that every block is free."""
        updates = self._end_all(list(self._requests), FinishReason.CANCELLED)
        self._in_flight = None
        self.coordinator.beat()
        self.coordinator.check_idle()
        return updates

    def _advance(self) -> list[Update]:
        previous, self._in_flight = self._in_flight, None
        self._coordinate()
        self._listen()
        plan = self._scheduler.schedule()
        self._check_progress(plan, previous)
        self._in_flight = self._dispatch(plan)
        if previous is None:
            return []
        updates = self._collect(previous)
        self._num_failures_in_a_row = 0
        self._num_steps_before_arrivals -= 1
        return updates

    def _listen(self) -> None:
        self._scheduler.tier.listen(self.runner.hear())

    def _coordinate(self) -> None:
        begin, dispatched_before = time.perf_counter(), self._rebalancer.dispatch_s
        try:
            self._rebalancer.step(self._scheduler.running)
        finally:
            dispatched = self._rebalancer.dispatch_s - dispatched_before
            self.stats.coordinator_s += time.perf_counter() - begin - dispatched

    def _beat(self) -> None:
        begin = time.perf_counter()
        self.coordinator.beat()
        self.stats.coordinator_s += time.perf_counter() - begin

    def _check_progress(self, plan: StepPlan, previous: InFlight | None) -> None:
        """Refuse to wait for something that nothing will bring."""
        is_empty = not plan.decodes and not plan.prefills
        self._num_empty = self._num_empty + 1 if is_empty else 0
        is_waiting = self._rebalancer.pressure.urgent and self._num_empty <= MAX_EMPTY_STEPS
        if is_empty and previous is None and self._requests and not is_waiting:
            raise InvariantError(
                f"nothing can run: {self.num_waiting} waiting, {self.num_running} running, "
                f"{self.coordinator.num_free} blocks free"
            )

    def _dispatch(self, plan: StepPlan) -> InFlight | None:
        # First: the step may write into blocks that are to be saved, and read fetched ones.
        for order in self._scheduler.tier.take_orders():
            self.runner.order(order)
        # Also when none of them runs in this step: they are admitted only once.
        for sequence in plan.admitted:
            if sequence.scheduled is None:
                sequence.scheduled = time.monotonic()
            if sequence.params.adjusts_logits:
                self._set_slot(sequence)
        if not plan.decodes and not plan.prefills:
            return None
        for piece in itertools.chain(plan.decodes, plan.prefills):
            note_placement(piece.sequence)
        encoded = self._encoder.encode(plan, self.runner.num_instances)
        self.stats.num_steps += 1
        self.stats.num_spanning_steps += encoded.num_spanning > 0
        self.stats.num_computed_tokens += encoded.num_tokens
        if self.step_model is not None:
            self.stats.modelled_s += step_s(self.step_model, encoded)
        return self.runner.dispatch(encoded)

    def _set_slot(self, sequence: Sequence) -> None:
        row = slot_row(
            sequence.params,
            prompt_ids=sequence.tokens[: sequence.prompt_len],
            output_ids=sequence.output_tokens,
            stop_ids=sorted(sequence.stop_ids),
            vocab=self.runner.vocab_size,
            bad_words=sequence.bad_words,
        )
        self.runner.set_slot(sequence.slot, row)

    def _collect(self, step: InFlight) -> list[Update]:
        begin = time.perf_counter()
        ids, sampled = self.runner.read(step)
        self.stats.wait_s += time.perf_counter() - begin
        updates = []
        for row in step.encoded.expected:
            sequence = row.sequence
            if sequence.state is State.FINISHED:
                continue
            if not row.is_sample:
                assert sampled is not None
                self._collector.score(row, sampled)
                continue
            sequence.num_pending -= 1
            request, _ = self._requests[sequence.key.request_id]
            token = int(ids[row.instance, row.row])
            updates.append(self._collector.append(request, row, token, sampled))
            self.stats.num_generated_tokens += 1
            if sequence.state is State.FINISHED:
                self._scheduler.release(sequence)
                self._forget_if_ended(request.request_id)
            elif sequence.state is State.PREEMPTED and not sequence.num_pending:
                self._scheduler.add(sequence)
        return updates

    def _recover(self, error: str) -> list[Update]:
        """After a failed step: new pools, and every running sequence is prefilled again."""
        self.stats.num_failed_steps += 1
        if self._renewal is None or not self._renewal.is_lost:
            # Not for a loss, which says nothing of what ran.
            self._num_failures_in_a_row += 1
        self._in_flight = None
        victims = [
            sequence
            for _, sequences in self._requests.values()
            for sequence in sequences
            if sequence.state in (State.RUNNING, State.PREEMPTED)
        ]
        if self._num_failures_in_a_row > self._max_step_failures:
            failed = {sequence.key.request_id for sequence in victims}
            self._num_failures_in_a_row = 0
            updates = self._end_all(failed, FinishReason.ERROR, f"steps kept failing: {error}")
            return updates + self._reset()
        for sequence in victims:
            sequence.num_pending = 0
            if sequence.state is State.RUNNING:
                self._scheduler.preempt(sequence)
            else:
                self._scheduler.add(sequence)
        return self._reset()

    def _reset(self) -> list[Update]:
        """Let go of pools that a failed step has spoilt, and of what was saved out of them."""
        if self._renewal is not None:
            # The connections between the processes are spoilt too.
            return self._renew()
        self._scheduler.tier.forget_all()
        self.runner.reset()
        return []

    def _renew(self) -> list[Update]:
        """Go on with other devices: every live sequence is prefilled again there.

        One for which there is no room any more waits for the devices that were lost.
        """
        assert self._renewal is not None
        self._in_flight = None
        moved, num_preemptions = self._rebalancer.stats, self._scheduler.num_preemptions
        num_fetched_tokens = self._scheduler.tier.num_fetched_tokens
        # Whoever refers to the old devices holds up the processes that wait for this one.
        del self.runner, self.coordinator, self._scheduler, self._rebalancer
        self._use(self._renewal.renew())
        self._rebalancer.stats, self._scheduler.num_preemptions = moved, num_preemptions
        self._scheduler.tier.num_fetched_tokens = num_fetched_tokens
        self.admission.move_to(self.coordinator)
        self._num_empty = 0
        self._num_steps_before_arrivals = STEPS_BETWEEN_ARRIVALS
        for request_id, (_, sequences) in self._requests.items():
            has_room = all(map(self.admission.has_room_for, sequences))
            if has_room:
                self._parked.pop(request_id, None)
            else:
                self._parked.setdefault(request_id, time.monotonic() + self._renewal.patience_s)
            for sequence in sequences:
                if sequence.state is State.FINISHED:
                    continue
                sequence.restart()
                sequence.num_pending = 0
                if has_room:
                    self._scheduler.add(sequence)
                else:
                    # Without blocks, and in no queue.
                    sequence.state = State.PREEMPTED
        return []

    def _end_overdue(self) -> list[Update]:
        if not self._deadlines and not self._parked:
            return []
        now = time.monotonic()
        overdue = [name for name, deadline in self._deadlines.items() if deadline <= now]
        updates = self._end_all(overdue, FinishReason.DEADLINE)
        given_up = [name for name, until in self._parked.items() if until <= now]
        num, limit = self.coordinator.num_instances, self.admission.max_slots
        told = f"the {num} instances that are left hold {limit} KV slots for one request"
        return updates + self._end_all(given_up, FinishReason.ERROR, told)

    def _end_all(
        self, request_ids: Iterable[str], reason: FinishReason, error: str | None = None
    ) -> list[Update]:
        updates = []
        for request_id in request_ids:
            request, sequences = self._requests.get(request_id, (None, ()))
            for sequence in sequences:
                if request is not None and sequence.state is not State.FINISHED:
                    self._scheduler.release(sequence)
                    updates.append(self._collector.end(request, sequence, reason, error))
            self._requests.pop(request_id, None)
            self._deadlines.pop(request_id, None)
            self._parked.pop(request_id, None)
        return updates

    def _forget_if_ended(self, request_id: str) -> None:
        _, sequences = self._requests[request_id]
        if all(sequence.state is State.FINISHED for sequence in sequences):
            del self._requests[request_id]
            self._deadlines.pop(request_id, None)

    def _audit_when_idle(self) -> None:
        if self.has_work:
            self._is_audited = False
        elif not self._is_audited:
            self.coordinator.check_idle()
            self._scheduler.tier.check_idle(self.runner.host_pools)
            self._is_audited = True


def step_s(model: StepModel, encoded: Encoded) -> float:
    """Predict a step: its slowest instance, and what its queries that travel add."""
    load = encoded.load
    slowest = max(
        model.base_s(int(num_tokens)) + model.attention_s(int(kv_tokens))
        for num_tokens, kv_tokens in zip(load.num_tokens, load.kv_tokens, strict=True)
    )
    return slowest + model.communication_s(encoded.num_spanning)


def note_placement(sequence: Sequence) -> None:
    """Remember where a sequence's tokens have been, for its output."""
    local = sequence.table.local
    sequence.instances_used.update(at for at, blocks in local.items() if len(blocks.ids))
    remote = sum(len(blocks.ids) for at, blocks in local.items() if at != sequence.home)
    tokens = remote * sequence.table.block_size
    sequence.max_remote_tokens = max(sequence.max_remote_tokens, tokens)
