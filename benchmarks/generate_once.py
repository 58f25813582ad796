"""How fast does one engine, in this process, prefill and decode a fixed batch?

    python -m benchmarks.generate_once --model tiny --batch 8 --prompt 128 --new 32

Prints the records, one JSON line each, and last a line of what follows from them.
`benchmarks.generate` runs this in fresh processes, in turn with a peer.
"""

import argparse
import functools
import json
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from benchmarks.bandwidth import bytes_per_s, read_memory
from benchmarks.measure import Record, measure, timed, wall_clock
from distkv_jax import LLM, SamplingParams
from distkv_jax.engine.engine import EngineStats
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.models.config import ModelConfig

SIZES = (
    "model",
    "mesh",
    "dtype",
    "kv_cache_dtype",
    "batch",
    "prompt",
    "new",
    "block_size",
    "max_num_batched_tokens",
)
SEED = 0
LOWEST_ID, HIGHEST_ID = 10, 4000  # prompts avoid special tokens, and fit small vocabularies
SHORT = 16
"""Tokens of the prompts whose steps have next to no attention."""


class Rates(NamedTuple):
    """Tokens per second, from the fastest runs.

    Attributes:
        prefill_tok_s: Prompt tokens over the time to one token for each prompt.
        decode_tok_s: Tokens after each prompt's first, over the time they took.
        step_ms: Milliseconds of one decode step of the whole batch.
    """

    prefill_tok_s: float
    decode_tok_s: float
    step_ms: float


class HostTime(NamedTuple):
    """What the engine's thread did with its time, over the steps of one batch.

    Attributes:
        host_ms_per_step: Planning, encoding, dispatching, collecting.
        wait_ms_per_step: Waiting for the device.
    """

    host_ms_per_step: float
    wait_ms_per_step: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one engine as the command line says."""
    args = make_parser().parse_args(argv)
    start = timed(functools.partial(make_llm, args))
    with start.result as llm:
        config = llm.model_config
        prompts = make_prompts(args.batch, args.prompt, vocab_size=config.vocab_size)
        first = timed(functools.partial(generate, llm, prompts[:1], 1))
        first_token_s = args.spawned_at and wall_clock() - args.spawned_at
        sizes = {name: getattr(args, name) for name in SIZES}
        steps: list[float] = []
        records = measure(
            {
                "prefill": functools.partial(generate, llm, prompts, 1),
                "prefill_and_decode": lambda: steps.append(
                    step_seconds(generate(llm, prompts, args.new))
                ),
            },
            sizes=sizes,
            runs=args.runs,
        )
        stubs = [prompt[:SHORT] for prompt in prompts]
        short_s = min(step_seconds(generate(llm, stubs, args.new)) for _ in range(1 + args.runs))
        before = llm.stats()
        generate(llm, stubs, args.new)
        host = host_time(before, llm.stats())
    memory = read_memory()
    for record in (*records.values(), memory):
        print(record.line())
    rates = work_out(records["prefill"], min(steps))
    step_bytes = bytes_per_step(
        config,
        weight_bytes=jnp.dtype(args.dtype).itemsize,
        kv_bytes=number_bytes(args.kv_cache_dtype, args.dtype),
        batch=args.batch,
        context=args.prompt + args.new // 2,
    )
    result = {
        "system": "distkv-jax",
        "first_token_s": first_token_s,
        "startup_s": start.seconds,
        "startup_compile_s": start.compile_s,
        "first_generate_s": first.seconds,
        **rates._asdict(),
        "attention_share": 1 - short_s * 1e3 / rates.step_ms,
        **host._asdict(),
        "step_mb": step_bytes / 1e6,
        "read_gb_s": bytes_per_s(memory) / 1e9,
        "bandwidth_fraction": step_bytes / (rates.step_ms / 1e3) / bytes_per_s(memory),
        "compiled_while_serving_s": sum(record.compile_s for record in records.values()),
    }
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in result.items()
    }
    print(json.dumps(rounded))
    return 0


def make_llm(args: argparse.Namespace) -> LLM:
    """Start an engine with room for the batch and no more."""
    blocks = args.batch * -(-(args.prompt + args.new) // args.block_size)
    return LLM(
        args.model,
        mesh=args.mesh,
        dtype=args.dtype,
        kv_cache_dtype=args.kv_cache_dtype,
        block_size=args.block_size,
        num_blocks=args.num_blocks or blocks,
        max_num_seqs=args.batch,
        max_num_batched_tokens=args.max_num_batched_tokens,
    )


def generate(llm: LLM, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[RequestOutput]:
    """Generate exactly `num_tokens` tokens for each prompt, greedily."""
    return llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )


def make_prompts(batch: int, length: int, *, vocab_size: int) -> list[list[int]]:
    """Draw the prompts that the peer's script draws, as far as the vocabulary allows."""
    rng = random.Random(SEED)
    highest = min(HIGHEST_ID, vocab_size)
    return [[rng.randrange(LOWEST_ID, highest) for _ in range(length)] for _ in range(batch)]


def step_seconds(outputs: Sequence[RequestOutput]) -> float:
    """Work out one decode step: from the last prompt's first token to the last token of all.

    Raises:
        ValueError: There was one token only.
    """
    metrics = [output.metrics for output in outputs]
    steps = min(len(output.outputs[0].token_ids) for output in outputs) - 1
    if not steps:
        raise ValueError("one token for each prompt has no decode step, expected more")
    first = max(one.first_token_time or 0 for one in metrics)
    return (max(one.finished_time or 0 for one in metrics) - first) / steps


def work_out(prefill: Record, step_s: float) -> Rates:
    """Work out rates from runs of one token a prompt, and from the seconds of a decode step."""
    batch, prompt = (int(prefill.sizes[name]) for name in ("batch", "prompt"))
    return Rates(batch * prompt / min(prefill.runs_s), batch / step_s, step_s * 1e3)


def host_time(before: EngineStats, after: EngineStats) -> HostTime:
    """Work out milliseconds a step between two readings of an engine's totals."""
    num_steps = after.num_steps - before.num_steps
    return HostTime(
        (after.host_s - before.host_s) / num_steps * 1e3,
        (after.wait_s - before.wait_s) / num_steps * 1e3,
    )


def number_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Bytes of a number in the pools; the scales of quantised ones are left out."""
    if kv_cache_dtype in ("int8", "fp8"):
        return 1
    return jnp.dtype(dtype if kv_cache_dtype == "auto" else kv_cache_dtype).itemsize


def bytes_per_step(
    config: ModelConfig, *, weight_bytes: int, kv_bytes: int, batch: int, context: int
) -> int:
    """Count the bytes that one decode step has to read: every matrix once, and the KV.

    Args:
        config: Sizes of the model.
        weight_bytes: Bytes of a weight.
        kv_bytes: Bytes of a number in the KV pool.
        batch: Sequences.
        context: Tokens of each.
    """
    q_width, kv_width = (heads * config.head_dim for heads in (config.q_heads, config.kv_heads))
    attention = config.hidden_size * (2 * q_width + 2 * kv_width)
    mlp = 3 * config.hidden_size * config.intermediate_size
    weights = config.num_layers * (attention + mlp) + config.vocab_size * config.hidden_size
    kv = batch * context * config.num_layers * 2 * kv_width
    return weight_bytes * weights + kv_bytes * kv


def make_parser() -> argparse.ArgumentParser:
    """Name the sizes of a case; `benchmarks.generate` adds its own."""
    parser = argparse.ArgumentParser(description="measure one engine in this process")
    parser.add_argument("--model", default="tiny", help="folder of a checkpoint, or a packaged one")
    parser.add_argument("--mesh", default="cpu-1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate for each, above 1")
    parser.add_argument("--runs", type=int, default=2, help="runs of each kind after a warm-up")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--num-blocks", type=int, help="default: what the batch needs")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--spawned-at", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
