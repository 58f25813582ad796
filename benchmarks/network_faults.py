"""A service of three hosts whose network fails: links that are cut, loss and delay.

    python -m benchmarks.network_faults
    python -m benchmarks.network_faults --faults host host-ssh leader leader-ssh loss delay stall

The hosts are network namespaces (`network_hosts`), the service is started by `distkv launch --ssh`,
clients ask over the bridge without a pause and compare every token with what one undisturbed
process gives. `host` and `leader` cut the link of one that follows and of rank 0; with `-ssh` the
ssh to it notices too. `loss` and `delay` are on host h1's connection to the coordinator only;
`stall` is a delay longer than the heartbeat's time-out. Prints one JSON line; exits with 1 if a
promise was broken. Needs root, iproute2 and iptables; `--can-run` only says whether it could run.
"""

import argparse
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.chaos_load import Load, make_cases
from benchmarks.measure import machine
from benchmarks.network_hosts import Hosts, reason_against
from benchmarks.network_relay import Relay
from benchmarks.network_service import START_S, NetworkService
from distkv_jax.errors import DistKVError
from serve.client import Client

FAULTS = ("host", "host-ssh", "loss", "leader", "leader-ssh", "delay", "stall")
"""In the order in which they happen."""
USUAL = ("host", "loss", "leader", "delay", "stall")
HOSTS = ("h0", "h1", "h2")
PORT, COORDINATOR = 50051, 50061
NUM_BLOCKS = 64
HEARTBEAT_S, STUCK_S = 4.0, 30.0
NOTICE_S = HEARTBEAT_S + 3.0
"""In which one that is cut off ends itself: its time-out, and a busy machine's hesitation."""
CUT_S = 8.0
"""For which a link is cut, at least."""
RETURN_S = 60.0
"""For all hosts to be back."""
ABORTS = re.compile(r"was killed by SIG(SEGV|BUS|ILL|FPE)|Check failed|Fatal Python error")
FENCED_BY_JAX = re.compile(r"^\[.*Terminating process because the JAX distributed service")
"""Said by one that was done without, and can be reached: its connections were ended."""

Figures = dict[str, object]


class Faults:
    """Does to the network what shall be done, and sees what comes of it.

    Attributes:
        broken: Promises that were not kept.
    """

    def __init__(
        self, hosts: Hosts, service: NetworkService, load: Load, client: Client, relay: Relay
    ) -> None:
        self.broken: list[str] = []
        self._hosts = hosts
        self._service = service
        self._load = load
        self._client = client
        self._relay = relay

    def warm_up(self, num_answers: int) -> None:
        """Wait for answers, which compile what they need."""
        wanted = self._load.ends["right"] + num_answers
        self._until(lambda: self._load.ends["right"] >= wanted, "answers", START_S)

    def do(self, fault: str, seconds: float) -> Figures:
        """Do one of `FAULTS`; where a rate is measured, for so many seconds each."""
        if fault in ("host", "host-ssh"):
            return self.cut_one("h2", is_ssh_cut=fault == "host-ssh")
        if fault in ("leader", "leader-ssh"):
            return self.cut_leader(is_ssh_cut=fault == "leader-ssh")
        if fault == "loss":
            self.warm_up(4)
            return self.lose(seconds)
        return self.delay(seconds) if fault == "delay" else self.stall()

    def cut_one(self, host: str, *, is_ssh_cut: bool) -> Figures:
        """Cut off one that follows; the others go on."""
        begin = time.monotonic()
        before = self._load.ends.copy()
        self._service.cut(host)
        if is_ssh_cut:
            self._service.end_ssh(host)
        else:
            self._ends_by_itself([host], begin)
        self._until(lambda: [one for one in self._service.formed(begin) if one.hosts == 2], "2")
        without = time.monotonic()
        self._until(lambda: self._last_token > without, "tokens without it")
        time.sleep(max(0.0, begin + CUT_S - time.monotonic()))
        mended = time.monotonic()
        self._service.mend(host)
        whole = self._until_whole()
        self._promise(self._load.ends["lost"] == before["lost"], f"{host}: a request was lost")
        return {
            "pause_s": self._longest_gap(begin, mended),
            "cut_s": round(mended - begin, 1),
            "return_s": round(whole - mended, 1),
            "return_pause_s": self._longest_gap(mended, time.monotonic()),
        }

    def cut_leader(self, *, is_ssh_cut: bool) -> Figures:
        """Cut off rank 0; the service is back when its link is."""
        begin = time.monotonic()
        before = self._load.ends.copy()
        self._service.cut("h0")
        if is_ssh_cut:
            self._service.end_ssh("h0")
        else:
            self._ends_by_itself(HOSTS[1:], begin)
        time.sleep(max(0.0, begin + CUT_S - time.monotonic()))
        mended = time.monotonic()
        self._service.mend("h0")
        self._until(lambda: self._last_token > mended, "tokens after rank 0 was cut off")
        tokens = time.monotonic()
        whole = self._until_whole()
        return {
            "cut_s": round(mended - begin, 1),
            "tokens_after_s": round(tokens - mended, 1),
            "return_s": round(whole - mended, 1),
            "ended_with_status": self._load.ends["lost"] - before["lost"],
        }

    def lose(self, seconds: float) -> Figures:
        """Drop more and more of what h1 and the coordinator say to each other."""
        found: Figures = {"0": self._rate(seconds)}
        for percent in (5, 10, 20):
            self._hosts.lose("h1", COORDINATOR, percent / 100)
            found[f"{percent}"] = one = self._rate(seconds)
            # With 20 % four losses in a row are not rare, and TCP waits twice as long each time.
            self._promise(percent > 10 or not one["lost_ranks"], f"a rank lost at {percent} %")
            self._hosts.lose("h1", COORDINATOR, 0)
            self._until_whole()
        return found

    def delay(self, seconds: float) -> Figures:
        """Hold for a while all that h1 and the coordinator say to each other."""
        found: Figures = {}
        for milliseconds in (0, 20, 100):
            self._relay.delay_s = milliseconds / 1e3
            time.sleep(1)
            found[f"{milliseconds}"] = one = self._rate(seconds)
            self._promise(not one["lost_ranks"], f"a rank lost at {milliseconds} ms")
        self._relay.delay_s = 0.0
        return found

    def stall(self) -> Figures:
        """Let nothing through between h1 and the coordinator, for longer than its patience."""
        begin = time.monotonic()
        before = self._load.ends.copy()
        self._relay.stall()
        self._until(lambda: [one for one in self._service.formed(begin) if one.hosts == 2], "2")
        time.sleep(max(0.0, begin + 10 - time.monotonic()))
        over = time.monotonic()
        self._relay.go_on()
        whole = self._until_whole()
        self._promise(self._load.ends["lost"] == before["lost"], "stall: a request was lost")
        return {
            "pause_s": self._longest_gap(begin, over),
            "return_s": round(whole - over, 1),
            "return_pause_s": self._longest_gap(over, time.monotonic()),
        }

    def _is_whole(self) -> bool:
        """Whether all hosts serve."""
        try:
            return len(self._client.pool().instances) == len(HOSTS)
        except DistKVError:
            return False

    def _ends_by_itself(self, hosts: Sequence[str], since: float) -> None:
        """Wait until processes that nobody can reach have ended."""
        self._until(lambda: not any(map(self._service.rank_on, hosts)), "the end of those cut off")
        seconds = time.monotonic() - since
        self._promise(seconds < NOTICE_S, f"{hosts} ended {seconds:.1f} s after the cut")

    def _until_whole(self) -> float:
        """Wait until all hosts serve, and tokens come; gives when they served."""
        self._until(self._is_whole, "all hosts back")
        now = time.monotonic()
        self._until(lambda: self._last_token > now, "tokens with all hosts back")
        return now

    def _until(self, is_so: Callable[[], object], what: str, timeout_s: float = RETURN_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline or self._service.has_ended:
                raise TimeoutError(f"never: {what}")
            time.sleep(0.02)

    @property
    def _last_token(self) -> float:
        return max(self._load.times[-1:], default=0.0)

    def _rate(self, seconds: float) -> Figures:
        begin, steps = time.monotonic(), self._client.load().num_steps
        time.sleep(seconds)
        count, end = self._client.load().num_steps - steps, time.monotonic()
        return {
            "steps_per_s": round(count / (end - begin), 1),
            "longest_gap_s": self._longest_gap(begin, end),
            "lost_ranks": len(self._service.formed(begin)),
        }

    def _longest_gap(self, begin: float, end: float) -> float:
        """Longest time without a token, of any client."""
        times = [begin, *(one for one in sorted(self._load.times) if begin < one < end), end]
        gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
        return round(max(gaps), 2)

    def _promise(self, is_kept: object, what: str) -> None:
        if not is_kept:
            self.broken.append(what)


def serve_args(hosts: Hosts, folder: Path) -> list[str]:
    """What the service is started with."""
    mesh = folder / "mesh.toml"
    axes = f"{{ instance = {len(HOSTS)}, tensor = 1 }}"
    mesh.write_text(f'platform = "cpu"\nsimulated = true\naxes = {axes}\n')
    words = ["tiny", "--mesh", str(mesh), "--block-size", "16", "--max-num-seqs", "8"]
    words += ["--num-blocks", f"{NUM_BLOCKS // 2}", "--max-num-batched-tokens", "64"]
    words += ["--host", hosts.address["h0"], "--port", f"{PORT}", "--insecure-public"]
    words += ["--http-port", "none", "--quiet", "--no-warm-up", "--log-level", "warning"]
    words += ["--coordinator", f"{hosts.address['h0']}:{COORDINATOR}", "--drain-grace-s", "10"]
    return [
        *words,
        *("--heartbeat-timeout-s", f"{HEARTBEAT_S:g}", "--stuck-timeout-s", f"{STUCK_S:g}"),
    ]


def run(args: argparse.Namespace, folder: Path, hosts: Hosts) -> Figures:
    """Start, disturb, and count."""
    # All that h1 and the coordinator say to each other goes through the relay.
    hosts.detour("h1", COORDINATOR)
    relay = Relay((hosts.gateway, COORDINATOR), (hosts.address["h0"], COORDINATOR))
    service = NetworkService(hosts, folder, serve_args(hosts, folder))
    found: Figures = {}
    broken: list[str] = []
    try:
        with relay, contextlib.ExitStack() as stack:
            # While it starts.
            cases = make_cases("tiny", args.cases, args.seed, NUM_BLOCKS)
            address = service.wait_address()
            client = stack.enter_context(Client(address, timeout_s=20))
            load = Load(address, cases, num_clients=args.clients, seed=args.seed, durable=False)
            faults = Faults(hosts, service, load, client, relay)
            broken = faults.broken
            try:
                faults.warm_up(len(cases))
                for fault in [one for one in FAULTS if one in args.faults]:
                    found[fault] = faults.do(fault, args.seconds)
                    print(f"{fault}: {found[fault]}", file=sys.stderr, flush=True)
            finally:
                num_endless = load.stop()
            found |= {"rpcs": dict(load.ends), "told": load.wrong[:10]}
            broken += [f"{num_endless} RPCs without an end"] if num_endless else []
            broken += [f"{load.ends['wrong']} with wrong tokens"] if load.ends["wrong"] else []
            broken += [] if load.ends["right"] else ["no request was answered"]
            pool = client.pool().instances
            if len(pool) != len(HOSTS) or any(one.free != one.total for one in pool):
                broken.append(f"blocks are held at the end: {pool}")
            found["exit_code"] = code = service.stop()
            broken += [f"exit code {code}"] if code else []
    except TimeoutError as error:
        broken.append(str(error))
    finally:
        service.kill()
        if args.log is not None:
            args.log.write_text("".join(f"{when:.3f} {line}\n" for when, line in service.lines))
    broken += [line for _, line in service.lines if ABORTS.search(line)]
    ended_by_jax = sum(FENCED_BY_JAX.search(line) is not None for _, line in service.lines)
    return found | {"ended_by_jax": ended_by_jax, "broken": broken}


def main() -> int:
    """Run it; 0 if all promises were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=USUAL)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured rate")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="file for all that the service says")
    parser.add_argument("--can-run", action="store_true", help="only say whether it can run here")
    args = parser.parse_args()
    if (reason := reason_against()) is not None:
        print(f"network faults cannot be made here: {reason}", file=sys.stderr)
        return 1
    if args.can_run:
        return 0
    # So that what was made is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distkv-") as folder, Hosts(HOSTS) as hosts:
        found = run(args, Path(folder), hosts)
    settings = {name: str(value) for name, value in vars(args).items() if name != "can_run"}
    print(
        json.dumps(
            {"benchmark": "network_faults", "settings": settings}
            | {"machine": machine()._asdict(), "seconds": round(time.monotonic() - begin)}
            | found
        )
    )
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
