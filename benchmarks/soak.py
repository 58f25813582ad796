"""A server under every kind of client for minutes: nothing may be lost, held, or grow.

    python -m benchmarks.soak --minutes 10 --streams 512 --clients 8

The server and its clients are processes. Clients read, cancel, abort, are late, slow or malformed;
one of them is killed now and then, with all its streams. Prints one JSON line: how RPCs ended, by
what was done and its status; memory, threads and file descriptors of the server; and how many steps
the engine took until every block was free after the last event. Exits with 1 if something was lost.
"""

import argparse
import collections
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from serve.proto.distkv.v1 import control_pb2, control_pb2_grpc

COMMAND = "import sys; from distkv_jax.cli import main; sys.exit(main())"
SERVE = (
    "serve tiny --mesh cpu-2 --block-size 16 --num-blocks 256 --max-num-seqs 16 "
    "--max-num-queued-reqs 400 --max-model-len 512 --port 0 --http-port none --quiet "
    "--log-level warning"
)
STOP_S = 150.0
"""More than any RPC of a client takes."""
MAX_STEPS = 2
"""From the last event until all blocks are free."""


class Sample(NamedTuple):
    """The server's process at a time.

    Attributes:
        seconds: Since the first sample.
        rss_mib: Memory that is resident.
        num_threads: Threads.
        num_files: Open file descriptors.
    """

    seconds: float
    rss_mib: float
    num_threads: int
    num_files: int


class ClientProcess:
    """A `benchmarks.soak_client`, and what it last told."""

    def __init__(self, address: str, num_streams: int, seed: int) -> None:
        words = [sys.executable, "-m", "benchmarks.soak_client", address, f"{num_streams}"]
        self._process = subprocess.Popen(
            [*words, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.counts: dict[str, Any] = {"begun": 0, "ends": {}}
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.counts = json.loads(line)

    def stop(self) -> None:
        """Ask it to end."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()

    def wait(self) -> bool:
        """Wait for its end; whether it ended by itself, and well."""
        try:
            return self._process.wait(STOP_S) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            return False
        finally:
            self._close()

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # Of one that was killed, what was not written is lost.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class ServerProcess:
    """A `distkv serve`, with a look at its memory."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        words = [sys.executable, "-c", COMMAND, *SERVE.split(), *flags]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self._start = time.monotonic()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r" by gRPC on (\S+:\d+) ", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line!r}")
        self.address = found[1]

    def sample(self) -> Sample:
        """Look at the process."""
        folder = Path("/proc") / str(self._process.pid)
        status = (folder / "status").read_text()
        kib, threads = (
            int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])  # pyright: ignore[reportOptionalSubscript] (Linux writes both)
            for name in ("VmRSS", "Threads")
        )
        num_files = len(list((folder / "fd").iterdir()))
        return Sample(time.monotonic() - self._start, kib / 1024, threads, num_files)

    def stop(self) -> int:
        """Drain it; gives its exit code, 0 where no block leaked."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()


class Soak:
    """Runs clients against a server, and adds up what became of their RPCs."""

    def __init__(self, server: ServerProcess, args: argparse.Namespace) -> None:
        self._server = server
        self._args = args
        self._num_seeds = 0
        self._clients = [self._start() for _ in range(args.clients)]
        self.samples: list[Sample] = []
        self.num_killed = 0
        self.num_cut_off = 0
        self.num_lost = 0
        self.ends: collections.Counter[str] = collections.Counter()

    def _start(self) -> ClientProcess:
        self._num_seeds += 1
        streams = self._args.streams // self._args.clients
        return ClientProcess(self._server.address, streams, self._num_seeds)

    def run(self) -> None:
        """Let them work, and replace one by another now and then."""
        end = time.monotonic() + 60 * self._args.minutes
        next_kill = time.monotonic() + self._args.kill_every_s
        while (now := time.monotonic()) < end:
            time.sleep(min(1.0, max(0.0, end - now)))
            self.samples.append(self._server.sample())
            if now >= next_kill:
                next_kill = now + self._args.kill_every_s
                victim = self._clients.pop(0)
                victim.kill()
                self.num_killed += 1
                self._count(victim, was_killed=True)
                self._clients.append(self._start())
        for client in self._clients:
            client.stop()
        for client in self._clients:
            is_clean = client.wait()
            self._count(client, was_killed=False)
            self.num_lost += not is_clean

    def _count(self, client: ClientProcess, *, was_killed: bool) -> None:
        ends = collections.Counter(client.counts["ends"])
        self.ends += ends
        left = client.counts["begun"] - ends.total()
        if was_killed:
            self.num_cut_off += left
        else:
            self.num_lost += left
        self.num_lost += sum(count for name, count in ends.items() if name.endswith("LOST"))


def steps_until_free(address: str) -> int:
    """Count the steps until no block is held, after the last RPC has its status."""
    with grpc.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        load = first = stub.GetLoad(control_pb2.GetLoadRequest())
        deadline = time.monotonic() + 30
        while load.num_free_blocks < load.num_blocks or load.num_requests:
            if time.monotonic() > deadline:
                raise RuntimeError(f"blocks are held by nobody: {load}")
            load = stub.GetLoad(control_pb2.GetLoadRequest())
        return load.num_steps - first.num_steps


def trend(samples: Sequence[Sample]) -> dict[str, float]:
    """Sum up the second half, when everything there is has been in use once."""
    late = samples[len(samples) // 2 :]
    slope, _ = statistics.linear_regression(
        [one.seconds / 60 for one in late], [one.rss_mib for one in late]
    )
    return {
        "rss_mib_per_minute": round(slope, 3),
        "rss_mib_max": round(max(one.rss_mib for one in samples), 1),
        "rss_mib_half": round(late[0].rss_mib, 1),
        "rss_mib_end": round(late[-1].rss_mib, 1),
        "threads_half": late[0].num_threads,
        "threads_max": max(one.num_threads for one in samples),
        "files_half": late[0].num_files,
        "files_max": max(one.num_files for one in samples),
        "files_end": samples[-1].num_files,
    }


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Run all of it; gives the line that is printed."""
    server = ServerProcess(args.serve)
    try:
        run = Soak(server, args)
        run.run()
        steps = steps_until_free(server.address)
        run.samples.append(server.sample())
    finally:
        code = server.stop()
    by_status: collections.Counter[str] = collections.Counter()
    for name, count in run.ends.items():
        by_status[name.partition(" ")[2]] += count
    return {
        "minutes": args.minutes,
        "streams": args.streams,
        "ended": run.ends.total(),
        "lost": run.num_lost,
        "clients_killed": run.num_killed,
        "cut_off_with_their_client": run.num_cut_off,
        "steps_until_free": steps,
        "server_exit_code": code,
        "by_status": dict(by_status.most_common()),
        **trend(run.samples),
        "ends": dict(sorted(run.ends.items())),
    }


def is_good(found: dict[str, Any]) -> bool:
    """Whether every RPC had a status, no block was held, and nothing ended as it never should."""
    wrong = {"UNKNOWN", "INTERNAL", "LOST", "UNIMPLEMENTED"} & set(found["by_status"])
    lost = found["lost"] or found["server_exit_code"] or wrong
    return not lost and found["steps_until_free"] <= MAX_STEPS


def main() -> int:
    """Run, print, and say by the exit code whether all was well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kill-every-s", type=float, default=10)
    parser.add_argument("serve", nargs="*", help="flags for the server, after --")
    found = soak(parser.parse_args())
    print(json.dumps(found))
    return 0 if is_good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
