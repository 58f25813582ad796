"""How far each process is with the commands that all of them run, and what holds one up."""

import dataclasses
import queue
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serve.proto.distkv.internal.v1 import world_pb2 as pb


@dataclasses.dataclass(slots=True)
class Member:
    """A process that follows, as its leader knows it.

    Attributes:
        rank: Which.
        outbox: Orders on their way to it.
        sent: Number of the last command that was handed to its connection.
        received: Of the last one that it said to have.
        dispatched: Of the last one that it started.
        read: Of the last step whose tokens it read.
        stage: What it does.
        last_heard: `time.monotonic()` of its last report.
        failure: A command that failed there, and how.
        failed: `time.monotonic()` of when that was heard first.
        pid: Of the process, on its host.
        addresses: Of its host.
        is_silent: Whether it was lost because it said nothing any more.
        name: Drawn for it; nobody of another epoch or world has the same.
        process_id: As JAX numbers the processes of the epoch.
        left: `time.monotonic()` of when it left an epoch that was over; None where it has not.
        end: Why it does not belong to the world any more; None where it does.
        from_host: What its rManagers have said and nobody has heard yet.
    """

    rank: int
    outbox: "queue.SimpleQueue[pb.Order]" = dataclasses.field(default_factory=queue.SimpleQueue)
    sent: int = 0
    received: int = 0
    dispatched: int = 0
    read: int = 0
    stage: int = pb.STAGE_UNSPECIFIED
    last_heard: float = dataclasses.field(default_factory=time.monotonic)
    failure: tuple[int, str] | None = None
    failed: float = 0.0
    pid: int = 0
    addresses: frozenset[str] = frozenset()
    process_id: int = 0
    is_silent: bool = False
    name: int = dataclasses.field(default_factory=lambda: secrets.randbits(63))
    left: float | None = None
    end: str | None = None
    from_host: list[pb.FromHost] = dataclasses.field(default_factory=list)

    def take(self, report: pb.Report) -> None:
        """Remember what it says."""
        self.last_heard = time.monotonic()
        self.stage = report.stage
        self.received, self.dispatched = report.received, report.dispatched
        self.read = report.read
        self.from_host.extend(report.from_host)
        if not report.HasField("failure"):
            self.failure = None
        elif self.failure is None:
            self.failure = (report.failure.number, report.failure.error)
            self.failed = self.last_heard

    def stage_of(self, command: "Pending") -> str:
        """Say how far it is with a command, in words."""
        number = command.number
        if self.sent < number:
            return "was not sent it yet"
        if self.received < number:
            return "was sent it and has not received it"
        if self.dispatched < number:
            return "received it and has not started it"
        if command.is_step and self.read < number:
            return "started it and waits for its tokens"
        return "is done with it"

    def is_done(self, command: "Pending") -> bool:
        """Whether nothing is left to do there."""
        return (self.read if command.is_step else self.dispatched) >= command.number


class Pending(NamedTuple):
    """A command that was published.

    Attributes:
        number: Its own.
        is_step: Whether there are tokens to be read.
        time: When, by `time.monotonic()`.
    """

    number: int
    is_step: bool
    time: float

    def __str__(self) -> str:
        return f"{'step' if self.is_step else 'command'} {self.number}"


def hold_up(pending: Iterable[Pending], members: Sequence[Member]) -> str:
    """Name the oldest command that is not done, and how far each process is with it."""
    now = time.monotonic()
    for command in pending:
        if not all(member.is_done(command) for member in members):
            stages = (f"rank {member.rank} {member.stage_of(command)}" for member in members)
            return f"{command}, published {now - command.time:.1f} s ago: {', '.join(stages)}"
    return "no command was under way"
