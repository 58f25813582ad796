"""A following process's connection to its leader: orders come in, reports go out."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import grpc

from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import Command, Reset
from distkv_jax.errors import WorldLost
from distkv_jax.world.connections import cut
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.host_messages import to_wire
from serve.world.settings import WorldSettings
from serve.world.token import KEY
from serve.world.wire import Wire

ENDS = ("stop", "reform")


class Link:
    """Receives on a thread of its own, so that orders are there when they are wanted.

    Implements `world.follower.Reporter`. When the leader is gone or silent `on_lost` is called, on
    a thread of the link's: whoever waits for the devices then may wait for ever.

    Attributes:
        is_reforming: Whether the leader has ended the epoch to begin another one.
    """

    def __init__(
        self,
        stub: pb_grpc.WorldStub,
        settings: WorldSettings,
        token: str,
        joined: pb.JoinResponse,
        on_lost: Callable[[WorldLost], None],
    ) -> None:
        """Connect, and report that the model is being loaded.

        Args:
            stub: Of the leader.
            settings: Of this process.
            token: The secret of all.
            joined: What the leader said when this process joined.
            on_lost: Told why there is no leader any more.
        """
        self._rank = settings.rank
        self._timeout_s = joined.heartbeat_timeout_s
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._report = pb.Report(
            epoch=joined.epoch,
            rank=self._rank,
            member=joined.member,
            stage=pb.STAGE_LOADING,
        )
        self._news = threading.Event()
        self._orders: queue.SimpleQueue[pb.Order] = queue.SimpleQueue()
        self._last_heard = time.monotonic()
        self._is_over = threading.Event()
        self._is_told = False
        self.is_reforming = False
        self._call = stub.Follow(self._reports(), metadata=((KEY, token),))
        for work in (self._receive, self._watch):
            threading.Thread(target=work, name=f"distkv{work.__name__}", daemon=True).start()

    def begin(self) -> pb.Begin | None:
        """Wait for the leader to say what is to be made; None if the epoch ends before."""
        order = self._orders.get()
        return order.begin if order.HasField("begin") else None

    def set_stage(self, stage: pb.Stage) -> None:
        """Tell what this process does now."""
        with self._lock:
            self._report.stage = stage
        self._news.set()

    def commands(self, wire: Wire) -> Iterator[Command]:
        """Give commands as they come, until the leader ends the epoch."""
        while (order := self._orders.get()).WhichOneof("order") not in ENDS:
            command = wire.command_of(order)
            if isinstance(command, Reset):
                with self._lock:
                    self._report.ClearField("failure")
            if command is not None:
                yield command

    def wait_end(self) -> None:
        """Wait until the leader ends the epoch, whatever else it says."""
        while self._orders.get().WhichOneof("order") not in ENDS:
            pass

    def close(self) -> None:
        """Hang up: this process has left the epoch."""
        self._is_over.set()
        self._news.set()

    def dispatched(self, number: int) -> None:
        """Report a command that was started."""
        with self._lock:
            self._report.dispatched = number
        self._news.set()

    def read(self, number: int, digest: bytes) -> None:
        """Report a step whose tokens were read."""
        with self._lock:
            self._report.read = number
            self._report.digests.append(pb.Digest(number=number, digest=digest))
        self._news.set()

    def said(self, messages: Iterable[FromHost]) -> None:
        """Pass on what this process's rManagers say."""
        written = [to_wire(message) for message in messages]
        if written:
            with self._lock:
                self._report.from_host.extend(written)
            self._news.set()

    def failed(self, number: int, error: str) -> None:
        """Report a command that failed; 0 that this process cannot go on."""
        with self._lock:
            self._report.failure.number = number
            self._report.failure.error = error[:1000]
        self._news.set()

    def _reports(self) -> Iterator[pb.Report]:
        beat_s = self._timeout_s / 5
        while True:
            with self._lock:
                report = pb.Report()
                report.CopyFrom(self._report)
                del self._report.digests[:], self._report.from_host[:]
            yield report
            if self._is_over.is_set():
                return
            self._news.wait(beat_s)
            self._news.clear()

    def _receive(self) -> None:
        try:
            for order in self._call:
                self._last_heard = time.monotonic()
                kind = order.WhichOneof("order")
                if kind in ENDS:
                    self._is_told = True
                    self.is_reforming = kind == "reform"
                    cut(order.reform.lost)
                elif kind != "beat" and kind != "begin" and kind is not None:
                    with self._lock:
                        self._report.received = getattr(order, kind).number
                    self._news.set()
                if kind != "beat":
                    self._orders.put(order)
            why = "it closed the connection"
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            why = str(error.details())
        if not self._is_over.is_set() and not self._is_told:
            self._lose(f"rank {self._rank} has no leader any more: {why}")

    def _watch(self) -> None:
        last_look = time.monotonic()
        while not self._is_over.wait(self._timeout_s / 10):
            now = time.monotonic()
            if now - last_look > self._timeout_s / 2:
                # It was this process that stood still; the leader has gone on without it, or not.
                self._last_heard = now
            last_look = now
            if now - self._last_heard > self._timeout_s and not self._is_told:
                with self._lock:
                    done = f"command {self._report.received} received, "
                    done += f"{self._report.dispatched} started, {self._report.read} read"
                self._lose(
                    f"rank {self._rank} has heard nothing of rank 0 for "
                    f"{now - self._last_heard:.1f} s; {done}"
                )

    def _lose(self, why: str) -> None:
        self._is_over.set()
        self._on_lost(WorldLost(why))
