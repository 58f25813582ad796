"""Services of several real processes, and worlds without devices."""

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from distkv_jax.engine.commands import Step
from distkv_jax.engine.plan import empty_buffer
from distkv_jax.engine.shapes import PlanShape
from distkv_jax.errors import WorldLost
from serve.client import Client
from serve.launch.local import COMMAND, free_port_pair
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.follow import join
from serve.world.leader import Leader
from serve.world.link import Link
from serve.world.settings import WorldSettings

ROOT = Path(__file__).parents[2]
START_S = 280
TIMEOUT_S = 30
TOKEN = "a-secret-for-tests"
SHAPE = PlanShape(decode_rows=4, prefill_tiles=0, spanning=False, tile=8, entries=16, instances=2)


class Service:
    """`distkv launch` with several processes, and a client of it."""

    def __init__(
        self, model: Path, *settings: str, hosts: int = 2, mesh: str | Path = "cpu-2"
    ) -> None:
        words = [*COMMAND, "launch", "--hosts", str(hosts), str(model), "--mesh", str(mesh)]
        words += ["--dtype", "float32", "--port", "0", "--http-port", "none", "--quiet", *settings]
        self.popen = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "\n".join(self.lines)

    def connect(self) -> Client:
        """Wait until it serves."""
        wait_until(lambda: self._address() or self.popen.poll() is not None, self, START_S)
        address = self._address()
        assert address, self.text
        return Client(address, max_retries=0, timeout_s=120)

    def pid_of(self, rank: int) -> int:
        """The process of a rank: the child of its guard, which the launcher started."""
        place = f"\0--host-rank\0{rank}\0".encode()
        for guard in children_of(self.popen.pid):
            if place in Path(f"/proc/{guard}/cmdline").read_bytes():
                for pid in children_of(guard):
                    return pid
        raise AssertionError(f"rank {rank} does not run: {self.text}")

    def end(self) -> int:
        """Wait for all processes."""
        code = self.popen.wait(60)
        self._reader.join(10)
        return code

    def close(self) -> None:
        """Stop it, whatever it does."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(30)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        self._reader.join(10)

    def _address(self) -> str | None:
        found = re.search(r"by gRPC on (\S+) ", self.text)
        return found[1] if found else None

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())


def children_of(pid: int) -> list[int]:
    """Processes that a process' first thread has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(is_so: Callable[[], object], what: object, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for something that comes."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"never: {getattr(what, 'text', what)}"
        time.sleep(0.01)


def settings_of(port: int, rank: int = 0, **settings: Any) -> WorldSettings:
    """Settings of one process of a world of two."""
    given: dict[str, Any] = dict(
        coordinator=f"127.0.0.1:{port}",
        num_hosts=2,
        host_rank=rank,
        join_token_file="unread",
        join_timeout_s=20,
        heartbeat_timeout_s=5,
    )
    return WorldSettings(**(given | settings))


class World:
    """A leader and one that follows it, over real sockets and without devices.

    Attributes:
        port: Of the leader.
        lost: What the leader was told; a world is lost at most once.
        fenced: Ranks and processes that it went on without, where it may.
        follower_lost: What the one that follows was told.
    """

    def __init__(self, **settings: Any) -> None:
        self.port = port = free_port_pair()
        self.lost: list[WorldLost] = []
        self.fenced: list[tuple[int, int]] = []
        self.follower_lost: list[WorldLost] = []
        self.leader = Leader(
            settings_of(port, **settings),
            {"version": "1"},
            TOKEN,
            num_slots=4,
            vocab_size=8,
            platform="cpu",
            on_lost=self.lost.append,
        )
        gathering = threading.Thread(target=self.leader.gather)
        gathering.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        stub = pb_grpc.WorldStub(self.channel)
        own = settings_of(port, rank=1, **settings)
        joined = join(stub, own, {"version": "1"}, TOKEN)
        gathering.join()
        self.link = Link(stub, own, TOKEN, joined, self.follower_lost.append)
        self.leader.begin(num_blocks=4, implementation="xla")
        assert self.link.begin() is not None

    @property
    def text(self) -> str:
        """Why it was lost."""
        return "; ".join(map(str, self.lost))

    def close(self) -> None:
        closing = threading.Thread(target=self.leader.close)
        closing.start()
        self.link.close()
        closing.join()
        self.channel.close()


@contextlib.contextmanager
def world(**settings: Any) -> Iterator[World]:
    """Make a world and end it."""
    one = World(**settings)
    try:
        yield one
    finally:
        one.close()


def step(number: int) -> Step:
    """A step in which nothing runs."""
    return Step(number, SHAPE, empty_buffer(SHAPE, num_blocks=4, num_slots=4))
