"""DistAttention over blocks anywhere on a mesh equals dense attention over each whole sequence.

Tiles and blocks are on random instances. Whatever no query may see is NaN, in pools and queries.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distkv_jax.attention import BlockLists, TileClass, dist_attention
from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import Row
from tests.hlo import collectives
from tests.models.builders import make_mesh

BLOCK_SIZE, HEAD_DIM, Q_HEADS, KV_HEADS = 4, 4, 8, 4
NUM_BLOCKS, NUM_ENTRIES = 32, 40
LENGTHS = (1, BLOCK_SIZE, BLOCK_SIZE + 1, 23, 31, 8)
NUM_TILES = len(LENGTHS)
DECODE, PREFILL, OUTPUT = 1, 6, 1  # tokens of a tile of each class
SCALE = 0.7
MESHES = [(1, 1), (2, 1), (8, 1), (2, 2), (1, 4)]

parametrize_mesh = pytest.mark.parametrize(
    "size", MESHES, ids=[f"{instance}x{tensor}" for instance, tensor in MESHES]
)


class Tile(NamedTuple):
    """Consecutive queries of one sequence, as tile `place` of `instance`."""

    sequence: int
    instance: int
    place: int
    start: int
    queries: np.ndarray


class Scene(NamedTuple):
    """One step's attention: what goes in, and the tiles with the keys they are to see."""

    pool: np.ndarray
    lists: BlockLists
    classes: tuple[TileClass, ...]
    tiles: tuple[list[Tile], ...]
    k: list[np.ndarray]
    v: list[np.ndarray]


def make_scene(
    instances: int,
    seed: int,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    is_local: bool = False,
    dtype: np.dtype | type = np.float32,
) -> Scene:
    """Scatter sequences over instances; where `is_local`, each stays on one, and nothing spans."""
    rng = np.random.default_rng(seed)
    homes = rng.integers(instances, size=len(LENGTHS))
    places = [
        np.full(-(-length // BLOCK_SIZE), home)
        if is_local
        else rng.integers(instances, size=-(-length // BLOCK_SIZE))
        for length, home in zip(LENGTHS, homes, strict=True)
    ]
    k, v = ([rng.normal(size=(n, KV_HEADS, HEAD_DIM)).astype(dtype) for n in LENGTHS] for _ in "kv")
    tiles = tuple(
        [
            make_tile(
                rng, sequence, int(homes[sequence] if is_local else rng.integers(instances)), size
            )
            for sequence in rng.permutation(len(LENGTHS))
        ]
        for size in (DECODE, PREFILL, OUTPUT)
    )
    for group in tiles:
        used = [list(rng.permutation(NUM_TILES)) for _ in range(instances)]
        group[:] = [tile._replace(place=used[tile.instance].pop()) for tile in group]

    pool = np.full((instances, NUM_BLOCKS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), np.nan, dtype)
    ids = np.full((instances, NUM_ENTRIES), NUM_BLOCKS, np.int32)
    starts = np.zeros((instances, NUM_ENTRIES), np.int32)
    ranges: dict[tuple[int, int], tuple[int, int]] = {}
    free = [list(rng.permutation(NUM_BLOCKS)) for _ in range(instances)]
    num_entries = [0] * instances
    for sequence in rng.permutation(len(LENGTHS)):
        for instance in range(instances):
            begin = num_entries[instance]
            for index in np.flatnonzero(places[sequence] == instance):
                block, entry = free[instance].pop(), num_entries[instance]
                ids[instance, entry], starts[instance, entry] = block, index * BLOCK_SIZE
                num_entries[instance] += 1
                for slot, at in enumerate(
                    range(index * BLOCK_SIZE, min((index + 1) * BLOCK_SIZE, LENGTHS[sequence]))
                ):
                    if is_seen(sequence, at, tiles, window):
                        pool[instance, block, 0, :, slot] = k[sequence][at]
                        pool[instance, block, 1, :, slot] = v[sequence][at]
            ranges[sequence, instance] = (begin, num_entries[instance])
    classes = tuple(
        make_class(group, size, ranges, instances, is_local, dtype)
        for group, size in zip(tiles, (DECODE, PREFILL, OUTPUT), strict=True)
    )
    lists = BlockLists(jnp.asarray(ids), jnp.asarray(starts))
    return Scene(pool.reshape(-1, *pool.shape[2:]), lists, classes, tiles, k, v)


def make_tile(rng: np.random.Generator, sequence: int, instance: int, size: int) -> Tile:
    """Pick queries of a sequence: its last token, or some of its tokens anywhere."""
    length = LENGTHS[sequence]
    count = min(size, length, int(rng.integers(1, size + 1)))
    start = length - 1 if size == 1 else int(rng.integers(0, length - count + 1))
    return Tile(int(sequence), instance, -1, start, rng.normal(size=(count, Q_HEADS, HEAD_DIM)))


def is_seen(sequence: int, at: int, tiles: Sequence[list[Tile]], window: int | None) -> bool:
    """Whether any query of the step sees a position."""
    return any(
        at < tile.start + len(tile.queries) and (window is None or at > tile.start - window)
        for group in tiles
        for tile in group
        if tile.sequence == sequence
    )


def make_class(
    tiles: list[Tile],
    size: int,
    ranges: dict[tuple[int, int], tuple[int, int]],
    instances: int,
    is_local: bool,
    dtype: np.dtype | type,
) -> TileClass:
    """Write the work of a class down, rows in the order of the tiles."""
    num_spanning = 0 if is_local else NUM_TILES
    q = np.full((instances, NUM_TILES, size, Q_HEADS, HEAD_DIM), np.nan, dtype)
    own = np.zeros((instances, NUM_TILES, len(Row)), np.int32)
    spanning = np.full((instances, num_spanning), NUM_TILES, np.int32)
    foreign = np.zeros((instances, instances * num_spanning, len(Row)), np.int32)
    used_own, used_spanning, used_foreign = ([0] * instances for _ in range(3))
    for tile in tiles:
        here, count = tile.instance, len(tile.queries)
        q[here, tile.place, :count] = tile.queries
        span = -1
        for instance in range(instances):
            begin, end = ranges[tile.sequence, instance]
            if begin == end:
                continue
            if instance == here:
                own[here, used_own[here]] = (tile.place, begin, end, tile.start, count)
                used_own[here] += 1
                continue
            if span < 0:
                span = used_spanning[here]
                spanning[here, span] = tile.place
                used_spanning[here] += 1
            row = (here * num_spanning + span, begin, end, tile.start, count)
            foreign[instance, used_foreign[instance]] = row
            used_foreign[instance] += 1
    return TileClass(*(jnp.asarray(array) for array in (q, own, spanning, foreign)))


@functools.cache
def program(
    size: tuple[int, int], window: int | None = None, soft_cap: float | None = None
) -> jax.stages.Wrapped:
    """Jit two layers: one of decode and prefill tiles, and the last one of output rows."""

    def step(
        pool: jax.Array, lists: BlockLists, classes: tuple[TileClass, ...]
    ) -> tuple[jax.Array, ...]:
        lists, classes = jax.tree.map(lambda array: array[0], (lists, classes))
        attend = functools.partial(
            dist_attention,
            pool=KVPool(pool),
            lists=lists,
            scale=SCALE,
            window=window,
            soft_cap=soft_cap,
        )
        outs = (*attend(classes[:2]), *attend(classes[2:]))
        return tuple(out[None] for out in outs)

    return jax.jit(
        jax.shard_map(
            step,
            mesh=make_mesh(*size),
            in_specs=P("instance"),
            out_specs=P("instance"),
            axis_names={"instance"},
            check_vma=False,
        )
    )


def check(
    outs: tuple[jax.Array, ...],
    scene: Scene,
    *,
    atol: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> None:
    """Compare with dense attention in float64; what no tile is must be zero."""
    for out, tiles, given in zip(outs, scene.tiles, scene.classes, strict=True):
        queries, expected = np.asarray(given.q), np.zeros(given.q.shape)
        for tile in tiles:
            q = queries[tile.instance, tile.place, : len(tile.queries)]
            expected[tile.instance, tile.place, : len(q)] = dense(
                q, scene.k[tile.sequence], scene.v[tile.sequence], tile.start, window, soft_cap
            )
        assert out.dtype == given.q.dtype
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1e-5, atol=atol)


def dense(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: int,
    window: int | None,
    soft_cap: float | None,
) -> np.ndarray:
    """Attend from queries at `start`, ... to one whole sequence."""
    group = Q_HEADS // KV_HEADS
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    k, v = (np.repeat(array, group, axis=1) for array in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * SCALE
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    distance = start + np.arange(len(q))[:, None] - np.arange(len(k))[None, :]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


@parametrize_mesh
@pytest.mark.parametrize("seed", range(4))
def test_blocks_anywhere_give_dense_attention(size: tuple[int, int], seed: int) -> None:
    scene = make_scene(size[0], seed)

    # Float32, outputs of about 1, sums of up to 31 terms.
    check(program(size)(scene.pool, scene.lists, scene.classes), scene, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_a_window_and_a_soft_cap_reach_every_instance(seed: int) -> None:
    scene = make_scene(2, seed, window=6)

    outs = program((2, 1), 6, 1.5)(scene.pool, scene.lists, scene.classes)

    check(outs, scene, atol=1e-5, window=6, soft_cap=1.5)


@pytest.mark.parametrize("size", [(2, 2), (8, 1)])
def test_a_bfloat16_wire_loses_no_more_than_its_rounding(size: tuple[int, int]) -> None:
    scene = make_scene(size[0], 0, dtype=jnp.bfloat16)

    # Weights, partial outputs and the merged output are each rounded once, by at most 2^-9 of
    # values up to 4. An lse sent in bfloat16 would be off by up to 2^-7, and the outputs with it.
    outs = program(size)(scene.pool, scene.lists, scene.classes)
    check(outs, scene, atol=3 * 4 * 2**-9)


@parametrize_mesh
def test_without_spanning_rows_nothing_travels(size: tuple[int, int]) -> None:
    scene = make_scene(size[0], 0, is_local=True)

    compiled = program(size).lower(scene.pool, scene.lists, scene.classes).compile()

    check(compiled(scene.pool, scene.lists, scene.classes), scene, atol=1e-5)
    assert collectives(compiled.as_text()) == []
