"""How much of memory's read bandwidth does one decode step of MicroAttention reach?

    python -m benchmarks.micro_attention --block-sizes 64 --kv-dtype int8

Prints one JSON line per batch, block size and implementation: every run's seconds, bytes of KV per
second in the median, and their share of the bandwidth that was measured between the same runs.
Besides MicroAttention's implementations there is one name for the platform's own kernel, `dense` on
CPU (`jax.nn.dot_product_attention` on contiguous KV) and `paged` on GPU and TPU (JAX's paged
attention); neither takes quantised KV.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bandwidth import make_reader
from benchmarks.measure import Record, measure, num_cores
from benchmarks.platform_attention import Batch, dense_call, paged_call
from distkv_jax.attention.choose import best_of
from distkv_jax.environment import cache_folder
from pallas_kernels.kv_pool import SCALE_BYTES, KVPool, is_quantised, quantise
from pallas_kernels.micro_attention import cpu, micro_attention

BATCHES = {
    "1x32k": (32768,),
    "16x4k": (4096,) * 16,
    "64x1k": (1024,) * 64,
    "ragged": (16384, *(4096,) * 2, *(1000,) * 8, *(160,) * 16),
}
"""Name to tokens of each sequence."""

READ_BYTES = 256 << 20
# Different numbers; the others repeat them, since only their addresses matter.
DISTINCT_BLOCKS = 16
PLATFORM = {"cpu": "dense", "gpu": "paged", "tpu": "paged"}


class Sizes(NamedTuple):
    """What all batches have in common.

    Attributes:
        q_heads: Query heads.
        kv_heads: KV heads.
        head_dim: Width of a head.
        q_dtype: Of queries.
        kv_dtype: Of the pool's data.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    q_dtype: np.dtype
    kv_dtype: np.dtype


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description="time decode attention against memory bandwidth")
    parser.add_argument("--batches", type=words, default=list(BATCHES), help="names, with commas")
    parser.add_argument("--block-sizes", type=words, default=["16", "64", "256"])
    parser.add_argument("--heads", type=words, default=["32", "8"], help="of queries, of KV")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--q-dtype", type=jnp.dtype, default=jnp.dtype(jnp.bfloat16))
    parser.add_argument("--kv-dtype", type=jnp.dtype, default=jnp.dtype(jnp.bfloat16))
    parser.add_argument("--implementations", type=words, help="default: best, xla and platform's")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    names = args.implementations or list(
        dict.fromkeys([best_of(device), "xla", PLATFORM[device.platform]])
    )
    if "cpu" in names:
        cpu.load(cache_folder() / "kernels")
    q_heads, kv_heads = map(int, args.heads)
    sizes = Sizes(q_heads, kv_heads, args.head_dim, args.q_dtype, args.kv_dtype)
    read = make_read(device.platform)
    for name in args.batches:
        for block_size in map(int, args.block_sizes):
            batch = make_batch(BATCHES[name], block_size, sizes)
            calls = {"read": read} | {each: make_call(each, batch, sizes) for each in names}
            about = {
                "batch": name,
                "block_size": block_size,
                **{key: str(value) for key, value in sizes._asdict().items()},
                "num_bytes": kv_bytes(BATCHES[name], sizes),
            }
            records = measure(calls, sizes=about, runs=args.runs)
            bandwidth = READ_BYTES / records.pop("read").median_s
            for record in records.values():
                print(line(record, bandwidth), flush=True)
    return 0


def words(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def kv_bytes(lengths: Sequence[int], sizes: Sizes) -> int:
    """Count what a decode step must read: K and V of every token, with scales."""
    scale = SCALE_BYTES if is_quantised(sizes.kv_dtype) else 0
    vector = sizes.head_dim * sizes.kv_dtype.itemsize + scale
    return sum(lengths) * 2 * sizes.kv_heads * vector


def line(record: Record, bandwidth: float) -> str:
    """Write a record with its bytes per second, and their share of the bandwidth."""
    per_s = float(record.sizes["num_bytes"]) / record.median_s
    rates = {"bytes_per_s": per_s, "bandwidth": bandwidth, "of_bandwidth": per_s / bandwidth}
    return json.dumps(json.loads(record.line()) | rates)


def make_read(platform: str) -> Callable[[], object]:
    """Bind the measurement of bandwidth: `READ_BYTES` read once."""
    if platform != "cpu":
        numbers = jnp.ones(READ_BYTES // 4, jnp.float32)
        return functools.partial(jax.jit(jnp.sum), numbers)
    parts = np.array_split(np.ones(READ_BYTES // 8, np.int64), num_cores())
    threads, reader = ThreadPoolExecutor(len(parts)), make_reader()
    return lambda: list(threads.map(reader.read, parts))


def make_batch(lengths: Sequence[int], block_size: int, sizes: Sizes) -> Batch:
    """Put sequences into a pool, blocks anywhere; each has one query, its last token."""
    rng = np.random.default_rng(0)
    counts = [-(-length // block_size) for length in lengths]
    num_blocks, ends = sum(counts), np.cumsum(counts)
    rows = [
        (row, end - count, end, length - 1, 1)
        for row, (end, count, length) in enumerate(zip(ends, counts, lengths, strict=True))
    ]
    shape = (DISTINCT_BLOCKS, 2, sizes.kv_heads, block_size, sizes.head_dim)
    few, scales = jnp.asarray(rng.normal(size=shape), jnp.float32), None
    if is_quantised(sizes.kv_dtype):
        few, few_scales = quantise(few, sizes.kv_dtype)
        scales = repeated(few_scales, num_blocks)
    q = rng.normal(size=(len(lengths), 1, sizes.q_heads, sizes.head_dim))
    return Batch(
        lengths=tuple(lengths),
        q=jnp.asarray(q, sizes.q_dtype),
        pool=KVPool(repeated(few.astype(sizes.kv_dtype), num_blocks), scales),
        block_ids=jnp.asarray(rng.permutation(num_blocks), jnp.int32),
        block_starts=jnp.asarray(
            np.concatenate([np.arange(count) * block_size for count in counts]), jnp.int32
        ),
        rows=jnp.asarray(rows, jnp.int32),
    )


def repeated(few: jax.Array, count: int) -> jax.Array:
    """Repeat rows until there are `count`."""
    times = -(-count // len(few))
    return jnp.tile(few, (times, *(1,) * (few.ndim - 1)))[:count]


def make_call(name: str, batch: Batch, sizes: Sizes) -> Callable[[], object]:
    """Bind one implementation to a batch."""
    scale = sizes.head_dim**-0.5
    if name == "dense":
        return dense_call(batch, scale)
    if name == "paged":
        return paged_call(batch, scale)
    call = jax.jit(functools.partial(micro_attention, scale=scale, implementation=name))
    arrays = batch.q, batch.pool, batch.block_ids, batch.block_starts, batch.rows
    return functools.partial(call, *arrays)


if __name__ == "__main__":
    sys.exit(main())
