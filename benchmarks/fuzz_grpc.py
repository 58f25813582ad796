"""Random and mutated requests at a running server: it must answer each with a status of the table.

    python -m benchmarks.fuzz_grpc --server 127.0.0.1:50051 --requests 20000 --seed 1

Prints how often each status came, and exits with 1 if one came that must not (UNKNOWN, INTERNAL),
if the server does not answer afterwards, or if it still holds a block when all is over.
"""

import argparse
import asyncio
import collections
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import grpc

from serve.client import AsyncClient
from serve.proto.distkv.v1 import inference_pb2 as pb

Code = grpc.StatusCode

NUMBERS = (0, 1, 2, -1, 5, 63, 64, 65, 127, 128, 300, 2**31 - 1, 2**31, -(2**63), 2**63 - 1)
REALS = (0.0, 1.0, -1.0, 0.5, 1e-9, 1e30, float("nan"), float("inf"), -float("inf"), 2.0)
TEXTS = ("", "a", "hello there", "\x00", "é\U0001f600", " " * 300, "<s></s>", "x" * 5000)
UNARY = ("Inference/Generate", "Inference/Abort", "Inference/GetModelInfo") + (
    "Control/GetLoad",
    "Control/GetPool",
    "Inference/NoSuchMethod",
)
STREAMED = "Inference/GenerateStream"
ALLOWED = frozenset(
    (
        Code.OK,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.RESOURCE_EXHAUSTED,
        Code.DEADLINE_EXCEEDED,
        Code.CANCELLED,
        Code.UNIMPLEMENTED,
    )
)
CONCURRENCY = 64
TIMEOUTS_S = (0.001, 0.02, 0.3, 1.0)


def random_message(rng: random.Random) -> bytes:
    """Write a request whose fields are ordinary, extreme or absent."""
    message = pb.GenerateRequest(
        request_id=rng.choice(("", "", "same", "other", "a b", "x" * 200)),
        priority=rng.choice((0, 0, -5, 2**31 - 1)),
        return_prompt_token_ids=rng.random() < 0.3,
    )
    match rng.randrange(4):
        case 0:
            message.text = rng.choice(TEXTS)
        case 1 | 2:
            length = rng.choice((1, 2, 8, 33, 100, 260))
            message.token_ids.ids.extend(rng.randrange(3, 128) for _ in range(length))
            if rng.random() < 0.2:
                message.token_ids.ids.append(rng.choice((-1, 128, 2**31 - 1, -(2**31))))
    sampling = message.sampling
    sampling.max_tokens = rng.choice((1, 2, 3, 8))
    for field in sampling.DESCRIPTOR.fields:
        if rng.random() > 0.06:
            continue
        if field.message_type is not None:
            sampling.logit_bias[rng.choice((0, 5, 127, 128, -1))] = rng.choice(REALS)
        elif field.is_repeated:
            pick = TEXTS if field.type == field.TYPE_STRING else NUMBERS
            getattr(sampling, field.name).extend(rng.choices(pick, k=rng.choice((1, 3, 200))))
        elif field.type == field.TYPE_BOOL:
            setattr(sampling, field.name, rng.random() < 0.5)
        else:
            pick = REALS if field.type == field.TYPE_DOUBLE else NUMBERS
            setattr(sampling, field.name, rng.choice(pick))
    return message.SerializeToString()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Change bytes, cut, double or insert."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                changed += changed[at:][:200]
    return bytes(changed)


def random_payload(rng: random.Random) -> bytes:
    """Write what a client might send, or nothing any client would."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(64))
        case 1 | 2:
            return mutated(rng, random_message(rng))
        case _:
            return random_message(rng)


async def one_call(channel: grpc.aio.Channel, rng: random.Random) -> Code:
    """Make one call, perhaps leave it early, and give its status."""
    is_streamed = rng.random() < 0.5
    method = STREAMED if is_streamed else rng.choices(UNARY, weights=(12, 2, 1, 1, 1, 1))[0]
    make = channel.unary_stream if is_streamed else channel.unary_unary
    payload, timeout = random_payload(rng), rng.choice(TIMEOUTS_S)
    call: Any = make(f"/distkv.v1.{method}")(payload, timeout=timeout)
    if rng.random() < 0.1:
        await asyncio.sleep(rng.random() * 0.02)
        call.cancel()
    try:
        if is_streamed:
            async for _ in call:
                pass
        else:
            await call
    except asyncio.CancelledError:
        return Code.CANCELLED
    except grpc.RpcError as error:
        return error.code()
    return await call.code()


async def fuzz(server: str, count: int, seed: int) -> collections.Counter[Code]:
    """Make `count` random calls, `CONCURRENCY` at once, and count the statuses."""
    codes: collections.Counter[Code] = collections.Counter()
    seeds = iter(range(seed * count, (seed + 1) * count))

    async def worker(channel: grpc.aio.Channel) -> None:
        for one in seeds:
            codes[await one_call(channel, random.Random(one))] += 1

    async with grpc.aio.insecure_channel(server) as channel:
        await asyncio.gather(*(worker(channel) for _ in range(CONCURRENCY)))
    return codes


async def leftovers(server: str, within_s: float = 10.0) -> str:
    """Say what the server still holds some seconds after the last call; empty for nothing."""
    deadline = time.monotonic() + within_s
    async with AsyncClient(server, timeout_s=within_s) as client:
        while True:
            load, pool = await client.load(), await client.pool()
            held = sum(one.held + one.reserved for one in pool.instances)
            if not (load.num_requests or load.num_waiting_tokens or held or pool.requests):
                return ""
            if time.monotonic() > deadline:
                return f"{load.num_requests} requests and {held} blocks are left"
            await asyncio.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--requests", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    codes = asyncio.run(fuzz(args.server, args.requests, args.seed))
    print(f"{codes.total()} requests in {time.monotonic() - begin:.0f} s, seed {args.seed}")
    for code, count in codes.most_common():
        print(f"{code.name:20} {count:7}{'' if code in ALLOWED else '  must not be'}")
    left = asyncio.run(leftovers(args.server))
    print(left or "the server answers, and holds nothing")
    return 1 if left or set(codes) - ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
