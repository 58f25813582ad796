"""The process that schedules: it tells the others every command before it runs it."""

import collections
import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures
from types import TracebackType

import grpc
import numpy as np

from distkv_jax.engine.commands import Command, Reset, Step
from distkv_jax.errors import ConfigError, WorldLost
from distkv_jax.world.digest import digest_of
from distkv_jax.world.fingerprint import Fingerprint
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.digests import Digests
from serve.world.members import Member, Pending, hold_up
from serve.world.roll_call import RollCall
from serve.world.service import BEAT, STOP, WorldService
from serve.world.settings import WorldSettings
from serve.world.wire import Wire

logger = logging.getLogger(__name__)

MAX_AHEAD = 256
"""Commands that may be published and not started by the slowest; then the leader waits."""
GOODBYE_S = 5.0
"""For ranks to leave when they were told to."""


class Leader:
    """Gathers the processes of a world, sends them commands and watches over them.

    Implements `engine.commands.World` for the runner of this process. Nobody waits for answers:
    a command goes out while earlier ones run. When a rank is lost, silent, stuck or astray the
    world is over: `on_lost` is called once, on a thread of the leader's, and whatever is asked of
    the world afterwards raises `WorldLost`.

    Attributes:
        epoch: Of this world; what belongs to another one is refused.
        on_lost: Told why.
    """

    def __init__(
        self,
        settings: WorldSettings,
        fingerprint: Fingerprint,
        token: str,
        *,
        num_slots: int,
        vocab_size: int,
        on_lost: Callable[[WorldLost], None],
    ) -> None:
        """Know nobody yet.

        Args:
            settings: Of rank 0.
            fingerprint: What the others must have too.
            token: The secret of all.
            num_slots: Of the sampler.
            vocab_size: Of the model.
            on_lost: See the class; may be set again later.
        """
        self.epoch = 1
        self.on_lost = on_lost
        self._settings = settings
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._roll_call = RollCall(settings.num_hosts, fingerprint)
        # Guards all that follows; notified of every change that somebody may wait for.
        self._changed = threading.Condition()
        self._self = Member(0)
        self._members = {rank: Member(rank) for rank in range(1, settings.num_hosts)}
        self._pending: collections.deque[Pending] = collections.deque()
        self._digests = Digests(settings.num_hosts)
        self._lost: WorldLost | None = None
        self._is_over = threading.Event()
        self._wire: Wire | None = None
        self._server = grpc.server(
            # Every rank has one call that lasts, and may make another one.
            futures.ThreadPoolExecutor(2 * settings.num_hosts + 4, "distkv-world"),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
        )
        self._watchdog = threading.Thread(target=self._watch, name="distkv-watchdog", daemon=True)
        service = WorldService(
            settings,
            token,
            self._roll_call,
            self._members,
            epoch=self.epoch,
            take=self._take,
            lose=self._lose,
            lost=lambda: self._lost,
        )
        pb_grpc.add_WorldServicer_to_server(service, self._server)

    def __enter__(self) -> "Leader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def gather(self) -> None:
        """Listen, and wait until every rank has joined.

        Raises:
            ConfigError: The address cannot be had, or ranks are missing.
        """
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        self._server.start()
        self._roll_call.wait(self._settings.join_timeout_s)
        now = time.monotonic()
        with self._changed:
            for member in self._members.values():
                member.last_heard = now
        self._watchdog.start()

    def close(self) -> None:
        """Tell the others to leave, and wait a little until they have."""
        with self._changed:
            was_open = not self._is_over.is_set()
            self._is_over.set()
            if was_open and self._lost is None:
                for member in self._members.values():
                    member.outbox.put(STOP)
            self._changed.notify_all()
        self._server.stop(GOODBYE_S).wait()

    # What the runner tells

    def begin(self, num_blocks: int, implementation: str) -> None:
        """Have the others make their runners."""
        self._wire = Wire(
            num_blocks=num_blocks, num_slots=self._num_slots, vocab_size=self._vocab_size
        )
        order = pb.Order(begin=pb.Begin(num_blocks=num_blocks, implementation=implementation))
        with self._changed:
            self._raise_if_lost()
            self._send(order)

    def wait_ready(self) -> None:
        """Wait until the others have compiled; as long as they are heard of."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._lost is not None
                    or all(member.stage == pb.STAGE_READY for member in self._members.values())
                )
            )
            self._raise_if_lost()

    def publish(self, command: Command) -> None:
        """Send a command to the others; a `Reset` is also waited for."""
        assert self._wire is not None
        # Not under the lock: it takes long where plans are large.
        order = self._wire.order_of(command)
        number = command.number
        with self._changed:
            self._changed.wait_for(lambda: self._lost or self._num_ahead(number) <= MAX_AHEAD)
            self._raise_if_lost()
            self._pending.append(Pending(number, isinstance(command, Step), time.monotonic()))
            self._self.sent = self._self.received = number
            self._send(order)
            if isinstance(command, Reset):
                self._changed.wait_for(lambda: self._lost or self._num_ahead(number) <= 0)
                self._raise_if_lost()
                # Nobody reads the steps before it any more.
                self._pending.clear()

    def dispatched(self, number: int) -> None:
        """Hear that this process has started a command."""
        self._self.dispatched = number

    def read(self, number: int, ids: np.ndarray) -> None:
        """Hear what a step sampled here."""
        self._self.read = number
        self._compare(0, number, digest_of(ids))

    def _send(self, order: pb.Order) -> None:
        for member in self._members.values():
            member.outbox.put(order)

    def _num_ahead(self, number: int) -> int:
        return number - min(member.dispatched for member in self._members.values())

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise WorldLost(str(self._lost))

    # What the others tell

    def _take(self, member: Member, report: pb.Report) -> None:
        with self._changed:
            member.take(report)
            self._changed.notify_all()
        for one in report.digests:
            self._compare(member.rank, one.number, one.digest)
        if member.failure is not None and not member.failure[0]:
            self._lose(f"rank {member.rank} cannot go on: {member.failure[1]}")

    def _compare(self, rank: int, number: int, digest: bytes) -> None:
        with self._changed:
            difference = self._digests.add(rank, number, digest)
        if difference is not None:
            self._lose(difference)

    # What the watchdog sees

    def _watch(self) -> None:
        last_look = last_change = time.monotonic()
        state: object = None
        while not self._is_over.wait(self._settings.beat_s / 2):
            now = time.monotonic()
            with self._changed:
                self._forget_done()
                members = list(self._members.values())
                if now - last_look > self._settings.beat_s:
                    # It was this process that stood still; what came meanwhile is not read yet.
                    for member in members:
                        member.last_heard = now
                last_look = now
                ranks = (self._self, *members)
                found = [(one.received, one.dispatched, one.read, one.stage) for one in ranks]
                oldest = self._pending[0].number if self._pending else None
                if oldest is None or (oldest, found) != state:
                    state, last_change = (oldest, found), now
            for member in members:
                silent_s = now - member.last_heard
                if silent_s > self._settings.heartbeat_timeout_s:
                    self._lose(f"rank {member.rank} has been silent for {silent_s:.1f} s")
                elif member.failure is not None and now - member.failed > (
                    self._settings.heartbeat_timeout_s
                ):
                    # What fails everywhere is followed by a reset; this failed there alone.
                    number, error = member.failure
                    self._lose(f"rank {member.rank} failed at command {number}: {error}")
            if now - last_change > self._settings.stuck_timeout_s:
                self._lose(f"nothing has moved for {now - last_change:.1f} s")

    def _forget_done(self) -> None:
        ranks = (self._self, *self._members.values())
        while self._pending and all(one.is_done(self._pending[0]) for one in ranks):
            self._pending.popleft()

    def _lose(self, why: str) -> None:
        """End the world, once."""
        with self._changed:
            if self._lost is not None or self._is_over.is_set():
                return
            where = hold_up(self._pending, (self._self, *self._members.values()))
            self._lost = WorldLost(f"{why}; {where}")
            self._is_over.set()
            self._send(BEAT)  # wakes those who tell the others
            self._changed.notify_all()
        logger.error("the world is lost: %s", self._lost)
        self.on_lost(self._lost)
