"""What leading costs: processes with live plans against the same ones that replay them.

    python -m benchmarks.world --hosts 2
    python -m benchmarks.world --hosts 4 --rounds 5

Starts the processes on this machine, gloo between them. A round serves one batch of requests with
plans from the leader, then has every process run the recorded commands again by itself, without
scheduling and without a wire. Prints a JSON line: the rate of steps of both, the bytes of a plan
in several forms, and how long after the leader published a step the others started it (all clocks
are this machine's).
"""

import argparse
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import machine
from distkv_jax import LLM, EngineConfig, SamplingParams
from distkv_jax.engine.build import follow_engine
from distkv_jax.engine.commands import Command, Reset, Step
from distkv_jax.engine.compile_cache import use_compile_cache
from distkv_jax.engine.runner import Runner
from distkv_jax.mesh import MeshConfig, make_mesh
from distkv_jax.models.checkpoint import load_model
from distkv_jax.models.model_folder import read_config
from distkv_jax.world.follower import Follower
from distkv_jax.world.processes import Presence
from distkv_jax.world.weights import check_weights
from serve.launch.local import free_port_pair
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.exit import end_process
from serve.world.follow import connect, join
from serve.world.leader import Leader
from serve.world.link import Link
from serve.world.settings import WorldSettings
from serve.world.wire import Wire

FINGERPRINT = {"benchmark": "world"}


class Percentiles(NamedTuple):
    """Of many values."""

    median: float
    p99: float
    largest: float


class Recorder(Leader):
    """A leader that remembers what it published, and when."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # pyright: ignore[reportArgumentType]
        self.commands: list[Command] = []
        self.published: dict[int, float] = {}
        self.last_read = 0.0

    def publish(self, command: Command) -> None:
        """Send a command to the others."""
        self.commands.append(command)
        self.published[command.number] = time.monotonic()
        super().publish(command)

    def read(self, number: int, ids: np.ndarray) -> None:
        """Hear what a step sampled here."""
        self.last_read = time.monotonic()
        super().read(number, ids)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, or be one of them."""
    args = _parser().parse_args(argv)
    if args.host_rank is None:
        return run_all(args)
    settings = WorldSettings(
        coordinator=args.coordinator,
        num_hosts=args.hosts,
        host_rank=args.host_rank,
        join_token_file="given",
        heartbeat_timeout_s=30,
    )
    mesh = MeshConfig(
        name="world",
        platform="cpu",
        instance=args.hosts,
        tensor=1,
        simulated=True,
        hosts=args.hosts,
    )
    config = EngineConfig(
        block_size=16,
        num_blocks=args.num_blocks,
        max_num_seqs=args.num_requests,
        max_num_batched_tokens=64,
        move_tokens_per_step=64,
    )
    if args.host_rank:
        follow(args, settings, mesh, config)
    else:
        print(json.dumps(lead(args, settings, mesh, config)), flush=True)
    return 0


def run_all(args: argparse.Namespace) -> int:
    """Run every process of the world; the first one prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.world", *sys.argv[1:], "--folder", folder]
        words += ["--token", secrets.token_hex(16)]
        words += ["--coordinator", f"127.0.0.1:{free_port_pair()}"]
        others = [
            subprocess.Popen([*words, "--host-rank", str(rank)]) for rank in range(1, args.hosts)
        ]
        first = subprocess.run(
            [*words, "--host-rank", "0"], stdout=subprocess.PIPE, text=True, check=False
        )
        for other in others:
            other.wait()
        if first.returncode or any(other.returncode for other in others):
            return 1
        result = json.loads(first.stdout.splitlines()[-1])
        published = {int(number): at for number, at in result.pop("published").items()}
        lags = [
            1e6 * (at - published[int(number)])
            for file in Path(folder).glob("*.json")
            for number, at in json.loads(file.read_text()).items()
            if int(number) in published
        ]
        print(json.dumps(result | {"lag_us": percentiles(lags)._asdict()}))
    return 0


def lead(
    args: argparse.Namespace, settings: WorldSettings, mesh: MeshConfig, config: EngineConfig
) -> dict[str, object]:
    """Serve batches and replay them; gives the figures."""
    vocab_size = read_config(args.model).vocab_size
    leader = Recorder(
        settings,
        FINGERPRINT,
        args.token,
        num_slots=config.max_num_seqs,
        vocab_size=vocab_size,
        platform="cpu",
        on_lost=end_process,
    )
    with leader:
        leader.gather()
        use_compile_cache()
        leader.enter()
        with LLM(
            args.model,
            mesh=mesh,
            dtype="float32",
            world=leader,
            **{name: getattr(config, name) for name in config.__dataclass_fields__},
        ) as llm:
            rounds = [one_round(llm, leader, args, seed) for seed in range(1 + args.rounds)][1:]
            stats = llm.stats()
    leader.leave()
    steps = [one for one in leader.commands if isinstance(one, Step)]
    assert config.num_blocks is not None
    wire = Wire(num_blocks=config.num_blocks, num_slots=config.max_num_seqs, vocab_size=vocab_size)
    live, replayed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "benchmark": "world",
        "hosts": args.hosts,
        "model": str(args.model),
        "live_steps_per_s": round(live, 1),
        "replayed_steps_per_s": round(replayed, 1),
        "ratio": round(statistics.median(one / other for one, other in rounds), 3),
        "rounds": [[round(rate, 1) for rate in one] for one in rounds],
        "steps": len(steps),
        "moved_blocks": stats.moved.total,
        "plan_bytes": plan_sizes(steps, wire),
        "published": leader.published,
        "machine": machine()._asdict(),
    }


def one_round(
    llm: LLM, leader: Recorder, args: argparse.Namespace, seed: int
) -> tuple[float, float]:
    """Serve a batch, then replay it; gives steps per second of both."""
    rng = random.Random(seed)
    vocab = llm.model_config.vocab_size
    prompts = [
        [rng.randrange(3, vocab) for _ in range(rng.randint(args.prompt // 4, args.prompt))]
        for _ in range(args.num_requests)
    ]
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens, ignore_eos=True)
    # At the first reset the others forget what they recorded, at the second they replay it.
    llm.thread.call(lambda engine: engine.runner.reset())
    first = len(leader.commands)
    llm.generate(prompts, params, use_tqdm=False)
    recorded = leader.commands[first:]
    live_s = leader.last_read - leader.published[recorded[0].number]

    def again(runner: Runner) -> float:
        runner.reset()
        return replay(runner, recorded)

    replay_s = llm.thread.call(lambda engine: again(engine.runner))
    num_steps = sum(isinstance(one, Step) for one in recorded)
    return num_steps / live_s, num_steps / replay_s


def replay(runner: Runner, commands: Iterable[Command]) -> float:
    """Run commands again, each step read when the next one runs; gives the seconds."""
    begin, previous = time.perf_counter(), None
    for command in commands:
        result = runner.execute(command)
        if result is not None:
            if previous is not None:
                np.asarray(previous)
            previous = result[0]
    if previous is not None:
        np.asarray(previous)
    return time.perf_counter() - begin


def follow(
    args: argparse.Namespace, settings: WorldSettings, mesh: MeshConfig, config: EngineConfig
) -> None:
    """Follow, replay when told to, and write down when steps were started."""
    with connect(settings) as channel:
        stub = pb_grpc.WorldStub(channel)
        joined = join(stub, settings, FINGERPRINT, args.token)
        link = Link(stub, settings, args.token, joined, end_process)
        use_compile_cache()
        presence = Presence(
            joined.jax_coordinator,
            num_processes=joined.num_processes,
            process_id=joined.process_id,
            platform="cpu",
            timeout_s=60,
        )
        devices = make_mesh(mesh)
        loaded = load_model(args.model, mesh=devices, dtype=np.float32)
        check_weights(loaded.params, devices)
        begin = link.begin()
        assert begin is not None and config.num_blocks is not None
        link.set_stage(pb.STAGE_COMPILING)
        runner = follow_engine(loaded, devices, config, begin.num_blocks, begin.implementation)
        link.set_stage(pb.STAGE_READY)
        wire = Wire(
            num_blocks=begin.num_blocks,
            num_slots=config.max_num_seqs,
            vocab_size=runner.vocab_size,
        )
        started: dict[int, float] = {}
        with Follower(runner, link) as follower:
            follower.run(recorded_and_replayed(link.commands(wire), runner, started))
        presence.leave()
    Path(args.folder, f"{settings.rank}.json").write_text(json.dumps(started))


def recorded_and_replayed(
    commands: Iterable[Command], runner: Runner, started: dict[int, float]
) -> Iterator[Command]:
    """Hand commands on; at every other reset, replay those since the one before."""
    recorded: list[Command] = []
    num_resets = 0
    for command in commands:
        if isinstance(command, Step):
            started[command.number] = time.monotonic()
        yield command
        if not isinstance(command, Reset):
            recorded.append(command)
            continue
        num_resets += 1
        if num_resets % 2 == 0:
            replay(runner, recorded)
        recorded.clear()


def plan_sizes(steps: Sequence[Step], wire: Wire) -> dict[str, dict[str, float]]:
    """Bytes of a plan on the wire, and microseconds to write it, in the forms that were tried."""
    found: dict[str, dict[str, float]] = {}
    forms = {
        "raw": lambda step: step.buffer.tobytes(),
        "zlib": lambda step: zlib.compress(step.buffer, 1),
        "changes": lambda step: wire.order_of(step).SerializeToString(),
        "changes, zlib": lambda step: zlib.compress(wire.order_of(step).SerializeToString(), 1),
    }
    for name, write in forms.items():
        sizes, seconds = [], []
        for step in steps[-500:]:
            begin = time.perf_counter()
            sizes.append(len(write(step)))
            seconds.append(time.perf_counter() - begin)
        found[name] = percentiles(sizes)._asdict() | {
            "median_us": round(1e6 * statistics.median(seconds), 1)
        }
    return found


def percentiles(values: Sequence[float]) -> Percentiles:
    """Sum values up."""
    ordered = sorted(values)
    return Percentiles(
        round(statistics.median(ordered), 1),
        round(ordered[int(0.99 * (len(ordered) - 1))], 1),
        round(ordered[-1], 1),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what leading several processes costs.")
    parser.add_argument("--hosts", type=int, default=2, help="processes, one instance each")
    parser.add_argument("--model", default="tiny", help="tiny, or a folder")
    parser.add_argument("--num-requests", type=int, default=8, help="of a batch")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--num-blocks", type=int, default=64, help="of each instance")
    parser.add_argument("--rounds", type=int, default=5)
    for name in ("--host-rank", "--coordinator", "--token", "--folder"):
        kind = int if name == "--host-rank" else str
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
