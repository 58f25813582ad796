"""What the processes that follow call: to join a world, and to be told what to run."""

import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from distkv_jax.errors import ConfigError, WorldLost
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.members import Member
from serve.world.roll_call import RollCall
from serve.world.settings import WorldSettings
from serve.world.token import is_in

logger = logging.getLogger(__name__)

BEAT = pb.Order(beat=pb.Beat())
STOP = pb.Order(stop=pb.Stop())


class WorldService(pb_grpc.WorldServicer):
    """The leader's side of the wire; each call runs on a thread of its own."""

    def __init__(
        self,
        settings: WorldSettings,
        token: str,
        roll_call: RollCall,
        *,
        member_of: Callable[[pb.Report], Member],
        arrived: Callable[[], None],
        take: Callable[[Member, pb.Report], None],
        left: Callable[[Member, bool], None],
        lost: Callable[[], WorldLost | None],
    ) -> None:
        """Serve a world.

        Args:
            settings: Of rank 0.
            token: The secret of all.
            roll_call: Who may come in.
            member_of: Knows who reports; raises a `ConfigError` for one of another epoch.
            arrived: Told when somebody waits to be let in.
            take: Takes what a rank reports.
            left: Told when a rank's connection was closed, and whether the rank did that itself.
            lost: Why the world is over, once it is lost.
        """
        self._settings = settings
        self._token = token
        self._roll_call = roll_call
        self._member_of = member_of
        self._arrived = arrived
        self._take = take
        self._left = left
        self._lost = lost

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinResponse:
        """Let a rank wait, and answer when an epoch begins with it."""
        self._check_token(context)
        try:
            caller = self._roll_call.enter(
                request.rank,
                request.num_hosts,
                request.fingerprint,
                pid=request.pid,
                addresses=frozenset(request.addresses),
            )
        except ConfigError as error:
            logger.warning("a process was refused: %s", error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if not context.add_callback(lambda: self._roll_call.leave(caller)):
            self._roll_call.leave(caller)
        self._arrived()
        try:
            return caller.answer.result()
        except concurrent.futures.CancelledError:
            context.abort(grpc.StatusCode.UNAVAILABLE, self._roll_call.closed)

    def Follow(
        self, request_iterator: Iterator[pb.Report], context: grpc.ServicerContext
    ) -> Iterator[pb.Order]:
        """Send orders to a rank until it leaves, or is done without."""
        self._check_token(context)
        first = next(request_iterator, pb.Report())
        try:
            member = self._member_of(first)
        except ConfigError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        hearing = threading.Thread(
            target=self._hear,
            args=(member, first, request_iterator),
            name="distkv-reports",
            daemon=True,
        )
        hearing.start()
        # Until it hangs up, also when it was told to leave: it does that last.
        while context.is_active() and hearing.is_alive():
            try:
                order = member.outbox.get(timeout=self._settings.beat_s)
            except queue.Empty:
                order = BEAT
            yield order
            member.sent = max(member.sent, number_of(order))
            if (error := self._lost()) is not None:
                context.abort(grpc.StatusCode.ABORTED, str(error))
            if member.end is not None:
                context.abort(
                    grpc.StatusCode.ABORTED,
                    f"epoch {first.epoch} goes on without it, {member.end}",
                )

    def _check_token(self, context: grpc.ServicerContext) -> None:
        if not is_in(context.invocation_metadata(), self._token):
            self._roll_call.refuse(f"{context.peer()} with another join token")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the join token is not this world's")

    def _hear(self, member: Member, first: pb.Report, reports: Iterator[pb.Report]) -> None:
        is_own_will = False
        try:
            self._take(member, first)
            for report in reports:
                self._take(member, report)
            is_own_will = True
        # The connection has ended, whichever way gRPC tells it.
        except Exception as error:
            logger.debug("rank %d: %r", member.rank, error)
        self._left(member, is_own_will)


def number_of(order: pb.Order) -> int:
    """The number of an order's command; 0 where it is none."""
    kind = order.WhichOneof("order")
    return getattr(getattr(order, kind), "number", 0) if kind else 0
