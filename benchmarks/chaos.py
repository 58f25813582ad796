"""A service of several processes that are killed and stopped at random, under load.

    python -m benchmarks.chaos --minutes 30 --hosts 3 --seed 1

Clients ask without a pause and compare every token with what one undisturbed process gives. Every
few seconds something happens to a process that follows: `kill` (-9), `stop` (SIGSTOP for ever),
`pause` (SIGSTOP, then SIGCONT, for a shorter or longer time than the heartbeat's time-out), `two`
(two at once); with `--events leader` rank 0 is killed, the service keeps a journal, and all
requests are durable. Prints one JSON line: how RPCs ended, what was done, and the seconds from each
kill to the next token. Exits with 1 if a request was lost, a token wrong, an RPC without an end, or
a block not free at the end.
"""

import argparse
import collections
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos_load import Case, Load, make_cases
from benchmarks.chaos_service import ChaosService
from benchmarks.measure import machine
from serve.client import Client
from serve.world.leader import free_port

EVENTS = ("kill", "stop", "pause", "two", "leader")
NUM_BLOCKS = 64
"""Of each instance: all of them together are short of blocks, one alone holds any request."""
SILENCE_S = 0.5
"""Without any token; so long a step never takes."""
RETURN_S = 120.0
"""For all hosts to be back at the end."""


class Event(NamedTuple):
    """Something that was done.

    Attributes:
        kind: What.
        time: `time.monotonic()` of when.
        ranks: To whom.
    """

    kind: str
    time: float
    ranks: tuple[int, ...]


class Chaos:
    """Does something bad at random times, the same for the same seed."""

    def __init__(self, service: ChaosService, args: argparse.Namespace) -> None:
        self._service = service
        self._draw = random.Random(args.seed)
        self._args = args
        self._timers: list[threading.Timer] = []
        self.events: list[Event] = []

    def run(self) -> None:
        """Go on until the time is over, or the service."""
        end = time.monotonic() + 60 * self._args.minutes
        while time.monotonic() < end and not self._service.has_ended:
            time.sleep(min(self._draw.uniform(*self._args.every), max(0, end - time.monotonic())))
            self._do(self._draw.choice(self._args.events))
        for timer in self._timers:
            timer.join()

    def _do(self, kind: str) -> None:
        followers = range(1, self._args.hosts)
        ranks = self._draw.sample(followers, 2 if kind == "two" and len(followers) > 1 else 1)
        if kind == "leader":
            ranks = [0]
        pause_s = self._draw.choice((0.3, 0.8, 1.6)) * self._args.heartbeat_timeout_s
        number = signal.SIGSTOP if kind in ("stop", "pause") else signal.SIGKILL
        hit = tuple(rank for rank in ranks if self._service.send(rank, number) is not None)
        if not hit:
            return
        self.events.append(Event(kind, time.monotonic(), hit))
        if kind == "pause":
            timer = threading.Timer(pause_s, self._service.send, (hit[0], signal.SIGCONT))
            timer.start()
            self._timers.append(timer)


def pauses(
    events: Sequence[Event], times: Sequence[float], within_s: float
) -> dict[str, list[float]]:
    """For each kind of event the seconds from it to the end of the silence that it caused.

    Args:
        events: What was done.
        times: When tokens came.
        within_s: A silence that begins later has another cause.
    """
    times = sorted(times)
    silences = [(a, b) for a, b in zip(times, times[1:], strict=False) if b - a > SILENCE_S]
    found: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        ends = [end for begin, end in silences if begin - within_s < event.time < end]
        found[event.kind].append(ends[0] - event.time if ends else 0.0)
    return found


def wait_whole(service: ChaosService, client: Client, hosts: int) -> bool:
    """Wait until all hosts are back and every block is free."""
    deadline = time.monotonic() + RETURN_S
    while time.monotonic() < deadline and not service.has_ended:
        instances = client.pool().instances
        if len(instances) == hosts and all(one.free == one.total for one in instances):
            return True
        time.sleep(0.2)
    return False


def serve_args(args: argparse.Namespace, folder: Path) -> list[str]:
    """What the service is started with."""
    mesh = folder / "mesh.toml"
    axes = f"{{ instance = {args.hosts}, tensor = 1 }}"
    mesh.write_text(f'platform = "cpu"\nsimulated = true\naxes = {axes}\n')
    words = [args.model, "--mesh", str(mesh), "--block-size", "16", "--max-num-seqs", "8"]
    words += ["--num-blocks", f"{NUM_BLOCKS // 2}", "--max-num-batched-tokens", "64"]
    words += ["--host-blocks", f"{NUM_BLOCKS // 4}"]
    words += ["--port", f"{args.port}", "--http-port", "none", "--quiet", "--log-level", "warning"]
    words += ["--heartbeat-timeout-s", f"{args.heartbeat_timeout_s}", "--drain-grace-s", "60"]
    if "leader" in args.events:
        words += ["--journal", str(folder / "journal")]
    return words


def run(args: argparse.Namespace, folder: Path, cases: Sequence[Case]) -> dict[str, object]:
    """Start, disturb, and count."""
    service = ChaosService(args.hosts, serve_args(args, folder))
    try:
        address = service.wait_address()
        load = Load(
            address,
            cases,
            num_clients=args.clients,
            seed=args.seed,
            durable="leader" in args.events,
        )
        chaos = Chaos(service, args)
        chaos.run()
        num_endless = load.stop()
        with Client(address, timeout_s=60) as client:
            is_whole = wait_whole(service, client, args.hosts)
        code = service.stop()
    finally:
        service.kill()
        if args.log is not None:
            args.log.write_text("".join(f"{when:.3f} {line}\n" for when, line in service.lines))
    found = pauses(chaos.events, load.times, args.heartbeat_timeout_s + 2)
    formed = [seconds for _, _, seconds in service.formed()]
    return {
        "events": collections.Counter(event.kind for event in chaos.events),
        "rpcs": dict(load.ends),
        "endless": num_endless,
        "wrong": load.wrong[:10],
        "is_whole": is_whole,
        "exit_code": code,
        "epochs": len(formed),
        "forming_s": spread(formed),
        "pause_s": {kind: spread(one) for kind, one in found.items()},
    }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and longest of some times; None for none."""
    if not seconds:
        return None
    return {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}


def is_good(found: dict[str, object]) -> bool:
    """Whether nothing was lost, wrong, endless or held."""
    rpcs = found["rpcs"]
    assert isinstance(rpcs, dict)
    is_clean = not rpcs.get("lost") and not rpcs.get("wrong") and not found["endless"]
    return bool(is_clean and rpcs.get("right") and found["is_whole"] and found["exit_code"] == 0)


def main() -> int:
    """Run it; 0 if all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--port", type=int, default=free_port(), help="of gRPC; a free one")
    parser.add_argument("--heartbeat-timeout-s", type=float, default=4.0)
    parser.add_argument("--every", type=float, nargs=2, default=(5.0, 20.0), metavar="S")
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=EVENTS[:-1])
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--log", type=Path, help="file for all that the service says")
    args = parser.parse_args()
    cases = make_cases(args.model, args.cases, args.seed, NUM_BLOCKS)
    with tempfile.TemporaryDirectory(prefix="distkv-") as folder:
        found = run(args, Path(folder), cases)
    settings = {name: value for name, value in vars(args).items() if name != "log"}
    print(json.dumps({"settings": settings, "machine": machine()._asdict()} | found))
    return 0 if is_good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
