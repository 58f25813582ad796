"""What the processes that follow call: to join a world, and to be told what to run."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping

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
        members: Mapping[int, Member],
        *,
        epoch: int,
        take: Callable[[Member, pb.Report], None],
        lose: Callable[[str], None],
        lost: Callable[[], WorldLost | None],
    ) -> None:
        """Serve a world.

        Args:
            settings: Of rank 0.
            token: The secret of all.
            roll_call: Who may come in.
            members: Those that follow, by rank; their outboxes are sent.
            epoch: Of the world; calls that belong to another one are refused.
            take: Takes what a rank reports.
            lose: Told when a rank has gone.
            lost: Why the world is over, once it is lost.
        """
        self._settings = settings
        self._token = token
        self._roll_call = roll_call
        self._members = members
        self._epoch = epoch
        self._take = take
        self._lose = lose
        self._lost = lost

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinResponse:
        """Let a rank in, and answer when all are here."""
        self._check_token(context)
        try:
            self._roll_call.enter(request.rank, request.num_hosts, request.fingerprint)
        except ConfigError as error:
            logger.warning("a process was refused: %s", error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if not context.add_callback(lambda: self._roll_call.leave(request.rank)):
            self._roll_call.leave(request.rank)
        if not self._roll_call.wait_over():
            context.abort(grpc.StatusCode.UNAVAILABLE, "not all ranks have joined in time")
        return pb.JoinResponse(
            epoch=self._epoch,
            jax_coordinator=self._settings.jax_coordinator,
            heartbeat_timeout_s=self._settings.heartbeat_timeout_s,
        )

    def Follow(
        self, request_iterator: Iterator[pb.Report], context: grpc.ServicerContext
    ) -> Iterator[pb.Order]:
        """Send orders to a rank for as long as it and the world live."""
        self._check_token(context)
        first = next(request_iterator, pb.Report())
        if first.epoch != self._epoch or first.rank not in self._members:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"rank {first.rank} of epoch {first.epoch} does not belong to epoch {self._epoch}",
            )
        member = self._members[first.rank]
        hearing = threading.Thread(
            target=self._hear,
            args=(member, first, request_iterator),
            name="distkv-reports",
            daemon=True,
        )
        hearing.start()
        while context.is_active():
            try:
                order = member.outbox.get(timeout=self._settings.beat_s)
            except queue.Empty:
                order = BEAT
            yield order
            if order is STOP:
                return
            member.sent = max(member.sent, number_of(order))
            if (error := self._lost()) is not None:
                context.abort(grpc.StatusCode.ABORTED, str(error))

    def _check_token(self, context: grpc.ServicerContext) -> None:
        if not is_in(context.invocation_metadata(), self._token):
            self._roll_call.refuse(f"{context.peer()} with another join token")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the join token is not this world's")

    def _hear(self, member: Member, first: pb.Report, reports: Iterator[pb.Report]) -> None:
        try:
            self._take(member, first)
            for report in reports:
                self._take(member, report)
        # The connection has ended, whichever way gRPC tells it.
        except Exception as error:
            logger.debug("rank %d: %r", member.rank, error)
        self._lose(f"rank {member.rank} has gone, its connection was closed")


def number_of(order: pb.Order) -> int:
    """The number of an order's command; 0 where it is none."""
    kind = order.WhichOneof("order")
    return getattr(getattr(order, kind), "number", 0) if kind else 0
