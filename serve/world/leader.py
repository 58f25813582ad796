"""The process that schedules: it tells the others every command before it runs it."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from types import TracebackType

import grpc
import numpy as np

from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import Command, Reset, Step
from distkv_jax.errors import ConfigError, WorldLost
from distkv_jax.world.connections import cut, own_addresses
from distkv_jax.world.digest import digest_of
from distkv_jax.world.fingerprint import Fingerprint
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.entrance import Entrance
from serve.world.epoch import Epoch, missing
from serve.world.host_messages import from_wire
from serve.world.members import Member, Pending
from serve.world.roll_call import Caller, RollCall
from serve.world.service import BEAT, STOP, WorldService
from serve.world.settings import WorldSettings
from serve.world.watchdog import Watchdog
from serve.world.wire import Wire

logger = logging.getLogger(__name__)

MAX_AHEAD = 256
"""Commands that may be published and not started by the slowest; then the leader waits."""
MAX_ENTRIES = 20
"""Epochs in a row that are lost before all have entered them; then something else is wrong."""
REFORM_POLL_S = 0.01
GOODBYE_S = 5.0
"""For ranks to leave when they were told to."""


class Leader:
    """Gathers the processes of a world, sends them commands and watches over them.

    Implements `engine.commands.World` for the runner of this process. Nobody waits for answers:
    a command goes out while earlier ones run. When a rank is lost, silent, stuck or astray the
    world is over: `on_lost` is called once, on a thread of the leader's, and whatever is asked of
    the world afterwards raises `WorldLost`.

    With an `on_due` the world survives the loss of a rank: the epoch is over, not the world. The
    ranks that are left are told to let go of their devices and to join again, the lost one is
    fenced off, and `reform` begins the next epoch with them and with whoever has come meanwhile.

    Attributes:
        on_lost: Told why.
        on_due: Told, on any thread, that `reform` is wanted; None where every loss is the end.
        on_fenced: Told rank and process id of one that the world goes on without. It may only be
            stopped, and hold up those that wait for it inside a collective, until it is killed.
    """

    def __init__(
        self,
        settings: WorldSettings,
        fingerprint: Fingerprint,
        token: str,
        *,
        num_slots: int,
        vocab_size: int,
        platform: str,
        on_lost: Callable[[WorldLost], None],
    ) -> None:
        """Know nobody yet.

        Args:
            settings: Of rank 0.
            fingerprint: What the others must have too.
            token: The secret of all.
            num_slots: Of the sampler.
            vocab_size: Of the model.
            platform: Of the mesh.
            on_lost: See the class; may be set again later.
        """
        self.on_lost = on_lost
        self.on_due: Callable[[], None] | None = None
        self.on_fenced: Callable[[int, int], None] = lambda rank, pid: None
        self._settings = settings
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._roll_call = RollCall(settings.num_hosts, fingerprint)
        # Guards all that follows; notified of every change that somebody may wait for.
        self._changed = threading.Condition()
        self._epoch = Epoch(0, settings.jax_coordinator, [])
        self._lost: WorldLost | None = None
        self._entrance = Entrance(platform, settings.join_timeout_s)
        self._is_over = threading.Event()
        self._wire: Wire | None = None
        self._server = grpc.server(
            # Every rank has one call that lasts and may wait in another one, and so may the one
            # that comes after it.
            futures.ThreadPoolExecutor(4 * settings.num_hosts + 4, "distkv-world"),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                # One that is stopped keeps its connections open, also while it waits to join.
                ("grpc.keepalive_time_ms", round(1000 * settings.heartbeat_timeout_s)),
                ("grpc.keepalive_timeout_ms", round(1000 * settings.heartbeat_timeout_s)),
                # Else a minute where its kernel still answers.
                ("grpc.http2.ping_timeout_ms", round(1000 * settings.heartbeat_timeout_s)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                # They ask too, and are not sent away for that.
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        self._watchdog = threading.Thread(target=self._watch, name="distkv-watchdog", daemon=True)
        service = WorldService(
            settings,
            token,
            self._roll_call,
            member_of=self._member_of,
            arrived=self._arrived,
            take=self._take,
            left=self._left,
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
        self._begin_epoch(self._settings.jax_coordinator)
        self._watchdog.start()

    @property
    def epoch(self) -> int:
        """Number of the epoch; what belongs to another one is refused."""
        return self._epoch.number

    def enter(self) -> None:
        """Make the processes of this epoch one JAX world.

        Raises:
            ConfigError: JAX has started already.
            WorldLost: A process was lost on the way.
        """
        self._entrance.enter(self._epoch)
        with self._changed:
            self._raise_if_lost()

    def leave(self) -> None:
        """Leave the JAX world, when the others have."""
        self._entrance.leave()

    @property
    def is_due(self) -> bool:
        """Whether `reform` is wanted, for a loss or for who has come."""
        return self.is_lost or (self._can_go_on and bool(self._roll_call.waiting))

    @property
    def is_lost(self) -> bool:
        """Whether the epoch is over, and `reform` can begin another one."""
        return self._can_go_on and self._epoch.end is not None

    @property
    def _can_go_on(self) -> bool:
        return self.on_due is not None and self._lost is None and not self._is_over.is_set()

    @property
    def patience_s(self) -> float:
        """Seconds that a lost rank has to come back, for requests that need it."""
        return self._settings.join_timeout_s

    def reform(self) -> int:
        """End the epoch and begin the next one, with the ranks that are left or have come.

        Whoever calls it has let go of all arrays and programs. An epoch that is lost before all
        have entered it is followed by another one.

        Returns:
            How many processes there are now, this one included.

        Raises:
            WorldLost: The world is over.
        """
        num_failures = 0
        while True:
            self._finish_epoch(WorldLost(f"epoch {self.epoch} is over"))
            # First: others may wait for this process inside a collective, and not come before.
            self._entrance.drop_devices()
            self._epoch.is_forming = True
            self._gather_again()
            # They have left: JAX's service must not end before.
            self._entrance.leave()
            # Another address: what belongs to an epoch that is over cannot disturb this one.
            self._begin_epoch(f"{self._settings.host}:{free_port()}")
            try:
                self.enter()
            except (WorldLost, ConfigError) as error:
                # The last: somebody else has taken the port meanwhile.
                num_failures += 1
                with self._changed:
                    if self._lost is not None or num_failures > MAX_ENTRIES:
                        raise WorldLost(str(error)) from error
                continue
            return self._epoch.num_processes

    def _finish_epoch(self, why: WorldLost) -> None:
        """End the epoch, if that has not been done, and tell its members."""
        with self._changed:
            if self._epoch.finish(why):
                self._roll_call.dismiss(set(self._epoch.members))
            self._changed.notify_all()

    def _gather_again(self) -> None:
        """Wait until every member has come again, or is done without."""
        while True:
            now = time.monotonic()
            with self._changed:
                if self._lost is not None:
                    raise WorldLost(str(self._lost))
                awaited = missing(self._epoch.members.values(), self._roll_call.waiting)
            if not awaited:
                return
            for member in awaited:
                if member.left and now - member.left > self._settings.heartbeat_timeout_s:
                    self._lose(f"rank {member.rank} has left and not come again", member)
            time.sleep(REFORM_POLL_S)

    def _begin_epoch(self, jax_coordinator: str) -> None:
        def begin(callers: list[Caller]) -> list[pb.JoinResponse]:
            self._epoch = Epoch(self.epoch + 1, jax_coordinator, callers)
            return self._epoch.answers(self._settings.heartbeat_timeout_s)

        with self._changed:
            self._roll_call.admit(begin)
            self._changed.notify_all()

    def close(self) -> None:
        """Tell the others to leave, and wait a little until they have."""
        with self._changed:
            was_open = not self._is_over.is_set()
            self._is_over.set()
            if was_open and self._lost is None:
                self._epoch.send(STOP)
            self._changed.notify_all()
        self._roll_call.close("the service has stopped")
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
            self._epoch.send(order)

    def wait_ready(self) -> None:
        """Wait until the others have compiled; as long as they are heard of."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or self._epoch.is_ready)
            self._raise_if_lost()

    def publish(self, command: Command) -> None:
        """Send a command to the others; a `Reset` is also waited for."""
        assert self._wire is not None
        # Not under the lock: it takes long where plans are large.
        order = self._wire.order_of(command)
        number, epoch = command.number, self._epoch
        with self._changed:
            self._changed.wait_for(lambda: self._end or epoch.num_ahead(number) <= MAX_AHEAD)
            self._raise_if_lost()
            epoch.pending.append(Pending(number, isinstance(command, Step), time.monotonic()))
            epoch.leader.sent = epoch.leader.received = number
            epoch.send(order)
            if isinstance(command, Reset):
                self._changed.wait_for(lambda: self._end or epoch.num_ahead(number) <= 0)
                self._raise_if_lost()
                # Nobody reads the steps before it any more.
                epoch.pending.clear()

    def dispatched(self, number: int) -> None:
        """Hear that this process has started a command."""
        self._epoch.leader.dispatched = number

    def read(self, number: int, ids: np.ndarray) -> None:
        """Hear what a step sampled here."""
        self._epoch.leader.read = number
        self._compare(self._epoch, 0, number, digest_of(ids))

    def hear(self) -> list[FromHost]:
        """Take what the others' rManagers have said since the last call."""
        with self._changed:
            written = [one for member in self._epoch.members.values() for one in member.from_host]
            for member in self._epoch.members.values():
                member.from_host = []
        return [message for one in written if (message := from_wire(one)) is not None]

    @property
    def _end(self) -> WorldLost | None:
        """Why no command can be carried out any more."""
        return self._lost or self._epoch.end

    def _raise_if_lost(self) -> None:
        if self._end is not None:
            raise WorldLost(str(self._end))

    # What the others tell

    def _member_of(self, report: pb.Report) -> Member:
        member = self._epoch.members.get(report.rank)
        if member is not None and report.member == member.name:
            return member
        raise ConfigError(
            f"rank {report.rank} of epoch {report.epoch} does not belong to epoch {self.epoch}"
        )

    def _arrived(self) -> None:
        if self.on_due is not None:
            self.on_due()

    def _left(self, member: Member, is_own_will: bool) -> None:
        with self._changed:
            member.left = time.monotonic()
            is_told = is_own_will and self._epoch.end is not None
        if not is_told:
            self._lose(f"rank {member.rank} has gone, its connection was closed", member)

    def _take(self, member: Member, report: pb.Report) -> None:
        with self._changed:
            member.take(report)
            self._changed.notify_all()
            epoch = self._epoch
            if not self._is_member(member):
                return
        for one in report.digests:
            self._compare(epoch, member.rank, one.number, one.digest)
        if member.failure is not None and not member.failure[0]:
            self._lose(f"rank {member.rank} cannot go on: {member.failure[1]}", member)

    def _compare(self, epoch: Epoch, rank: int, number: int, digest: bytes) -> None:
        with self._changed:
            difference = epoch.digests.add(rank, number, digest)
        if difference is not None:
            self._lose(difference, None)

    # What becomes of it

    def _watch(self) -> None:
        watchdog = Watchdog(self._settings, self._lose)
        while not self._is_over.wait(self._settings.beat_s / 2):
            watchdog.look(self._epoch, self._changed)

    def _lose(self, why: str, member: Member | None) -> None:
        """Do without a member if that can be; else end the world, once."""
        with self._changed:
            if self._lost is not None or self._is_over.is_set():
                return
            if member is not None and (member.end is not None or not self._is_member(member)):
                return
            lost = WorldLost(f"{why}; {self._epoch.hold_up}")
            can_go_on = member is not None and self.on_due is not None
            if member is not None:
                member.end = why
                member.outbox.put(BEAT)  # wakes who tells it
            if not can_go_on:
                self._lost = lost
                self._is_over.set()
                self._epoch.send(BEAT)
                self._changed.notify_all()
        if can_go_on and member is not None:
            self._do_without(member, lost)
        else:
            self._roll_call.close(str(lost))
            logger.error("the world is lost: %s", lost)
            self.on_lost(lost)

    def _do_without(self, member: Member, why: WorldLost) -> None:
        """Fence a member off; the epoch is over for all."""
        logger.warning("epoch %d is over: %s", self.epoch, why)
        self._finish_epoch(why)
        # Of a process that is killed the kernel closes the connections; of a host nobody does.
        lost: frozenset[str] = frozenset()
        if member.is_silent:
            lost = member.addresses - own_addresses(self._settings.host, self._settings.port)
        with self._changed:
            self._epoch.without(lost)
        cut(lost)
        self.on_fenced(member.rank, member.pid)
        self._entrance.without(self._epoch, member)
        self._arrived()

    def _is_member(self, member: Member) -> bool:
        return self._epoch.members.get(member.rank) is member


def free_port() -> int:
    """Find a port that is free now."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as one:
        one.bind(("", 0))
        return one.getsockname()[1]
