"""What the service costs: the same batch in process, by unary gRPC, and by streams.

    python -m benchmarks.serve_overhead --mesh cpu-1 --requests 16 --max-tokens 64 --rounds 5

One engine in this process; the client is a process of its own. Kinds take turns, so that a busy
machine is busy for all of them. Prints one JSON line with every run, and medians: tokens per second
and the processor time of a token, in this process and in the client's, whose share is taken from
the engine where there are few cores.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from serve.client import AsyncClient
from serve.server import Server
from serve.settings import ServerSettings

KINDS = ("in process", "unary", "stream")
IDLE_S = 0.02


def prompts_of(count: int, length: int, seed: int) -> list[list[int]]:
    """Make prompts of random tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(3, 100) for _ in range(length)] for _ in range(count)]


def params_of(max_tokens: int) -> dict[str, Any]:
    """Greedy, past end tokens, without text: everybody generates the same number."""
    return {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}


class Taken(NamedTuple):
    """What a batch took.

    Attributes:
        seconds: By the clock.
        cpu_s: Of all threads of this process, the engine's among them.
        client_cpu_s: Of the client's process.
    """

    seconds: float
    cpu_s: float
    client_cpu_s: float


class Here:
    """Runs in this process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def batch(self, prompts: Sequence[list[int]], max_tokens: int) -> float:
        """Generate for all, and give the seconds it took."""
        begin = time.perf_counter()
        params = SamplingParams(**params_of(max_tokens))
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        assert all(len(one.outputs[0].token_ids) == max_tokens for one in outputs)
        return time.perf_counter() - begin

    def first_token(self, prompt: list[int]) -> float:
        """Give the seconds to the first token at idle."""
        time.sleep(IDLE_S)
        begin = time.perf_counter()
        stream = self._llm.stream(prompt, SamplingParams(**params_of(2)))
        next(stream)
        taken = time.perf_counter() - begin
        list(stream)
        return taken


class There:
    """Runs in the client's process."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def batch(self, kind: str, prompts: Sequence[list[int]], max_tokens: int) -> float:
        """Generate for all; gives the seconds it took."""
        one = self._streamed if kind == "stream" else self._whole
        begin = time.perf_counter()
        counts = await asyncio.gather(*(one(prompt, max_tokens) for prompt in prompts))
        assert counts == [max_tokens] * len(prompts)
        return time.perf_counter() - begin

    async def _whole(self, prompt: list[int], max_tokens: int) -> int:
        output = await self._client.generate(prompt, params_of(max_tokens))
        return len(output.outputs[0].token_ids)

    async def _streamed(self, prompt: list[int], max_tokens: int) -> int:
        count = 0
        async for output in self._client.stream(prompt, params_of(max_tokens)):
            count = sum(len(one.token_ids) for one in output.outputs)
        return count

    async def first_token(self, prompt: list[int]) -> float:
        """Give the seconds to the first token at idle."""
        await asyncio.sleep(IDLE_S)
        begin, taken = time.perf_counter(), 0.0
        async for output in self._client.stream(prompt, params_of(2)):
            if not taken and output.outputs:
                taken = time.perf_counter() - begin
        return taken


async def obey(address: str) -> None:
    """Be the client: a line of JSON in, seconds and seconds of the processor out."""
    async with AsyncClient(address) as client:
        there = There(client)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            kind, cpu_s = order.pop("kind"), time.process_time()
            call = there.first_token(**order) if kind == "first" else there.batch(kind, **order)
            print(json.dumps([await call, time.process_time() - cpu_s]), flush=True)


def serve_in_thread(llm: LLM) -> tuple[str, Callable[[], None]]:
    """Serve from a loop in a thread; gives the address, and what ends it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Server:
        server = Server(llm, ServerSettings(port=0, http_port=None), model_name="bench")
        await server.start()
        return server

    async def stop() -> None:
        server.drain()
        await server.wait()

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()

    def end() -> None:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    return f"127.0.0.1:{server.port}", end


def measure(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    """Take turns, and collect seconds."""
    address, end = serve_in_thread(llm)
    client = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve_overhead", "--client", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None and client.stdout is not None

    def ask(**order: Any) -> tuple[float, float]:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(json.dumps(order) + "\n")
        client.stdin.flush()
        seconds, cpu_s = json.loads(client.stdout.readline())
        return seconds, cpu_s

    def run(kind: str, prompts: Sequence[list[int]]) -> Taken:
        cpu_s = time.process_time()
        if kind == KINDS[0]:
            seconds, client_cpu_s = here.batch(prompts, args.max_tokens), 0.0
        else:
            seconds, client_cpu_s = ask(kind=kind, prompts=prompts, max_tokens=args.max_tokens)
        return Taken(seconds, time.process_time() - cpu_s, client_cpu_s)

    here = Here(llm)
    taken: dict[str, list[Taken]] = {kind: [] for kind in KINDS}
    first: dict[str, list[float]] = {"in process": [], "stream": []}
    # The first round is not kept: connections are made, caches are filled.
    for number in range(args.rounds + 1):
        prompts = prompts_of(args.requests, args.prompt_len, seed=number)
        for kind in KINDS if number % 2 else reversed(KINDS):
            one = run(kind, prompts)
            if number:
                taken[kind].append(one)
        for _ in range(10 if number else 1):
            firsts = {
                "in process": here.first_token(prompts[0]),
                "stream": ask(kind="first", prompt=prompts[0])[0],
            }
            if number:
                for kind, value in firsts.items():
                    first[kind].append(value)
    client.stdin.close()
    client.wait()
    end()
    return {"batch": taken, "first_token_s": first}


def main() -> None:
    """Measure, or be the client."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mesh", default="cpu-1")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.client:
        asyncio.run(obey(args.client))
        return
    with LLM(args.model, mesh=args.mesh, max_num_seqs=args.requests, num_blocks=512) as llm:
        found = measure(llm, args)
    print(json.dumps({"settings": vars(args)} | found))
    total = args.requests * args.max_tokens
    for kind, values in found["batch"].items():
        here = found["batch"][KINDS[0]]
        ratios = [a.seconds / b.seconds for a, b in zip(here, values, strict=True)]
        cpu_us, client_us = (
            1e6 * statistics.median(getattr(one, name) for one in values) / total
            for name in ("cpu_s", "client_cpu_s")
        )
        rate = total / statistics.median(one.seconds for one in values)
        print(
            f"{kind:12} {rate:8.0f} tokens/s, {statistics.median(ratios):.3f} of in process; "
            f"processor time of a token: {cpu_us:.0f} us, and {client_us:.0f} us of the client"
        )
    firsts = {kind: 1000 * statistics.median(one) for kind, one in found["first_token_s"].items()}
    print("first token at idle: " + ", ".join(f"{k} {v:.1f} ms" for k, v in firsts.items()))


if __name__ == "__main__":
    main()
