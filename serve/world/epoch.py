"""The processes that work together between two changes of who they are."""

import collections
from collections.abc import Iterable, Sequence

from distkv_jax.errors import WorldLost
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.world.digests import Digests
from serve.world.members import Member, Pending, hold_up
from serve.world.roll_call import Caller

REFORM = pb.Order(reform=pb.Reform())


class Epoch:
    """Members, and the commands that they have not all carried out.

    Whoever owns it guards it with a lock.

    Attributes:
        number: Of the epoch, from 1; 0 for one of nobody.
        jax_coordinator: Address of its JAX world.
        members: By rank, those too that are lost.
        leader: How far the process of rank 0 is.
        pending: Commands published and not done everywhere, the oldest first.
        digests: Of the steps that were read.
        end: Why it is over; None while it is not.
        is_forming: Whether the leader has let go of its devices, to form the next one.
    """

    def __init__(self, number: int, jax_coordinator: str, callers: Sequence[Caller]) -> None:
        self.number = number
        self.jax_coordinator = jax_coordinator
        # Process ids of JAX are without gaps, ranks need not be.
        self.members = {
            one.rank: Member(one.rank, pid=one.pid, addresses=one.addresses, process_id=1 + at)
            for at, one in enumerate(callers)
        }
        self.leader = Member(0)
        self.pending: collections.deque[Pending] = collections.deque()
        self.digests = Digests(self.num_processes)
        self.end: WorldLost | None = None
        self.is_forming = False

    @property
    def num_processes(self) -> int:
        """All of them, the leader's too."""
        return 1 + len(self.members)

    @property
    def present(self) -> list[Member]:
        """Members that are not lost and have not left."""
        return [one for one in self.members.values() if one.end is None and one.left is None]

    @property
    def is_ready(self) -> bool:
        """Whether all members have compiled."""
        return all(one.stage == pb.STAGE_READY for one in self.members.values())

    def answers(self, heartbeat_timeout_s: float) -> list[pb.JoinResponse]:
        """What each member is told when the epoch begins, in the order of ranks."""
        return [
            pb.JoinResponse(
                epoch=self.number,
                jax_coordinator=self.jax_coordinator,
                heartbeat_timeout_s=heartbeat_timeout_s,
                num_processes=self.num_processes,
                process_id=one.process_id,
                member=one.name,
            )
            for one in self.members.values()
        ]

    def send(self, order: pb.Order) -> None:
        """Send an order to all."""
        for member in self.members.values():
            member.outbox.put(order)

    def finish(self, why: WorldLost) -> bool:
        """Tell all but the lost to let go of their devices and come again.

        Returns:
            False if that was done before.
        """
        if self.end is not None:
            return False
        self.end = why
        for member in self.members.values():
            if member.end is None:
                member.outbox.put(REFORM)
        return True

    def without(self, lost: Iterable[str]) -> None:
        """Tell those that are left which hosts' connections to end."""
        order = pb.Order(reform=pb.Reform(lost=sorted(lost)))
        for member in self.members.values():
            if member.end is None:
                member.outbox.put(order)

    def num_ahead(self, number: int) -> int:
        """How many commands up to this one the slowest has not started."""
        others = (member.dispatched for member in self.members.values())
        return number - min(others, default=number)

    def forget_done(self) -> None:
        """Drop the commands that all are done with."""
        while self.pending and all(one.is_done(self.pending[0]) for one in self._ranks):
            self.pending.popleft()

    @property
    def progress(self) -> object:
        """Something that changes whenever a rank gets on; None where nothing is under way."""
        if not self.pending:
            return None
        found = [(one.received, one.dispatched, one.read, one.stage) for one in self._ranks]
        return self.pending[0].number, found

    @property
    def hold_up(self) -> str:
        """The oldest command that is not done, and how far each rank is with it."""
        return hold_up(self.pending, self._ranks)

    @property
    def _ranks(self) -> Sequence[Member]:
        return (self.leader, *self.members.values())


def missing(members: Iterable[Member], waiting: set[int]) -> list[Member]:
    """List those of an ended epoch that are not lost, and have not come again."""
    return [one for one in members if one.end is None and one.rank not in waiting]
