"""One client of the soak: many streams at once, each of which ends in some way of many.

Imports no more than gRPC, as there are several of these processes and some are killed.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from serve.proto.distkv.v1 import inference_pb2 as pb
from serve.proto.distkv.v1 import inference_pb2_grpc

STATUS_S = 120.0
"""An RPC that has no status after so long is lost."""
REPORT_S = 0.5
BUSY_S = 0.5
"""Wait after a refusal: refusals alone would fill the time."""
MALFORMED = (
    b"\xff\xff\xff",
    b"\x1a\xff\xff\xff\xff\x0f",
    pb.GenerateRequest().SerializeToString(),
    pb.GenerateRequest(text="").SerializeToString(),
    pb.GenerateRequest(text="x", sampling=pb.SamplingParams(top_p=7.0)).SerializeToString(),
    pb.GenerateRequest(token_ids=pb.TokenIds(ids=[-1])).SerializeToString(),
    pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 500_000)).SerializeToString(),
    pb.GenerateRequest(text="long " * 200_000).SerializeToString(),
    pb.GenerateRequest(text="x", sampling=pb.SamplingParams(stop=["a"] * 50)).SerializeToString(),
)


class SoakClient:
    """Makes RPCs until told to stop, and counts how each ended.

    Invariant: once all have ended, `num_begun` is the sum of `ends`.
    """

    def __init__(self, channel: grpc.aio.Channel, seed: int) -> None:
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._raw = channel.unary_unary("/distkv.v1.Inference/Generate")
        self._random = random.Random(seed)
        self._seed = seed
        self.num_begun = 0
        self.ends: collections.Counter[str] = collections.Counter()
        self.is_over = asyncio.Event()
        self._acts: tuple[tuple[int, str, Callable[[], Awaitable[object]]], ...] = (
            (30, "read", self._read),
            (15, "whole", self._whole),
            (15, "cancel", self._cancel),
            (12, "deadline", self._deadline),
            (8, "slow", self._slow),
            (10, "abort", self._abort),
            (10, "malformed", self._malformed),
        )

    async def work(self) -> None:
        """Make one RPC after another."""
        weights = [weight for weight, _, _ in self._acts]
        while not self.is_over.is_set():
            ((_, name, act),) = self._random.choices(self._acts, weights)
            self.num_begun += 1
            try:
                async with asyncio.timeout(STATUS_S):
                    code = await act()
                end = code.name if isinstance(code, grpc.StatusCode) else "OK"
            except grpc.aio.AioRpcError as error:
                end = error.code().name
            except asyncio.CancelledError:
                end = "CANCELLED"
            except TimeoutError:
                end = "LOST"
            self.ends[f"{name} {end}"] += 1
            busy = end in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
            await asyncio.sleep(self._random.uniform(0, BUSY_S) if busy else 0)

    def _request(self, *, is_long: bool = False) -> pb.GenerateRequest:
        rng = self._random
        sampling = pb.SamplingParams(
            max_tokens=200 if is_long else rng.randint(1, 32),
            ignore_eos=True,
            temperature=rng.choice([0.0, 1.0]),
            n=rng.choice([1, 1, 1, 3]),
        )
        request = pb.GenerateRequest(request_id=f"{self._seed}-{self.num_begun}", sampling=sampling)
        if rng.random() < 0.3:
            request.text = "Once upon a time " * rng.randint(1, 12)
        else:
            request.token_ids.ids.extend(rng.choices(range(3, 200), k=rng.randint(1, 100)))
        return request

    async def _read(self) -> None:
        async for _ in self._stub.GenerateStream(self._request()):
            pass

    async def _whole(self) -> None:
        await self._stub.Generate(self._request())

    async def _cancel(self) -> grpc.StatusCode:
        call = self._stub.GenerateStream(self._request(is_long=True))
        await asyncio.sleep(self._random.uniform(0, 1))
        call.cancel()
        return await call.code()

    async def _deadline(self) -> None:
        timeout_s = self._random.uniform(0.001, 1.0)
        async for _ in self._stub.GenerateStream(self._request(is_long=True), timeout=timeout_s):
            pass

    async def _slow(self) -> None:
        request = self._request(is_long=True)
        request.sampling.logprobs = 20
        call = self._stub.GenerateStream(request)
        async for _ in call:
            await asyncio.sleep(self._random.uniform(0, 2))
            if self._random.random() < 0.3:
                call.cancel()

    async def _abort(self) -> None:
        request = self._request(is_long=True)
        call = self._stub.GenerateStream(request)
        await asyncio.sleep(self._random.uniform(0, 0.5))
        try:
            await self._stub.Abort(pb.AbortRequest(request_id=request.request_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        async for _ in call:
            pass

    async def _malformed(self) -> None:
        await self._raw(self._random.choice(MALFORMED))


async def run(address: str, num_streams: int, seed: int) -> None:
    """Work until a line comes in, then let what runs end; tell the counts all the while."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        client = SoakClient(channel, seed)
        work = asyncio.gather(*(client.work() for _ in range(num_streams)))
        order = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        while not work.done():
            await asyncio.wait((work, order), timeout=REPORT_S, return_when="FIRST_COMPLETED")
            if order.done() and not client.is_over.is_set():
                client.is_over.set()
            elif order.done():
                await asyncio.wait([work], timeout=REPORT_S)
            counts: dict[str, Any] = {"begun": client.num_begun, "ends": dict(client.ends)}
            print(json.dumps(counts), flush=True)
        await work


def main() -> None:
    """Be a client."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("num_streams", type=int)
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    asyncio.run(run(args.address, args.num_streams, args.seed))


if __name__ == "__main__":
    main()
