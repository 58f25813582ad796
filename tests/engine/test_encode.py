"""The arrays of a step say what its plan says: each tile sees each visible block exactly once."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from distkv_jax.cache.block import Place
from distkv_jax.engine.encode import Encoded, StepLoad
from distkv_jax.engine.plan import (
    FLAG_ADJUST,
    FLAG_BAN_STOP,
    FLAG_LOGPROBS,
    PlanArrays,
    host_views,
)
from distkv_jax.engine.sampler import seed_words
from distkv_jax.engine.scheduler import StepPlan
from distkv_jax.engine.sequence import Sequence
from pallas_kernels.micro_attention import Row
from tests.engine.loop import BLOCK_SIZE, Loop, instances_of, is_prefilled, pieces_of
from tests.engine.test_scheduler import SETTINGS

CLASSES = ("decode", "prefill", "output")
Views: TypeAlias = dict[str, np.ndarray]


class Tile(NamedTuple):
    """A tile that the plan asks for: on `instance`, with `count` tokens from `position`."""

    sequence: Sequence
    instance: int
    position: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.count: unused here)


class Inspector:
    """Compares what is encoded with the plan and with the tables, as `Loop.inspect`."""

    def __init__(self) -> None:
        self.loop: Loop
        self.num_spanning = 0

    def __call__(self, plan: StepPlan, encoded: Encoded) -> None:
        """Check one step."""
        views = host_views(encoded.buffer, encoded.shape)
        assert encoded.shape in self.loop.shapes.shapes
        assert encoded.num_tokens == sum(piece.count for piece in pieces_of(plan))
        asked = {name: list(tiles_of(plan, name, self.loop.shapes.tile)) for name in CLASSES}
        found = {name: self.tiles_in(views, name) for name in CLASSES}
        for name in CLASSES:
            self.check_class(asked[name], found[name])
        self.check_tokens(plan, views)
        self.check_outputs(encoded, views)
        self.check_lists(views)
        self.check_load(asked, encoded.load)
        self.num_spanning += encoded.num_spanning
        if not encoded.shape.spanning:
            assert encoded.num_spanning == 0

    def check_class(
        self, asked: list[Tile], found: dict[tuple[int, int, int], list[list[Place]]]
    ) -> None:
        """Verify that each tile reads exactly the blocks that it may see, wherever they are."""
        # Tiles of samples may be at equal positions of one instance: compare as a bag.
        wanted = Counter(
            (tile.instance, tile.position, tile.count, frozenset(self.visible(tile)))
            for tile in asked
        )
        given = Counter()
        for (instance, position, count), groups in found.items():
            for places in groups:
                assert len(set(places)) == len(places), "a block is read twice"
                given[instance, position, count, frozenset(places)] += 1
        assert given == wanted

    def visible(self, tile: Tile) -> Iterator[Place]:
        """List the held blocks that a tile may see, from the table's own order."""
        window = self.loop.window
        table = tile.sequence.table
        for index, place in enumerate(table.places):
            first, last = index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE - 1
            if first < tile.position + tile.count and (
                window is None or last > tile.position - window
            ):
                assert index >= table.num_dropped, "a block in the window was dropped"
                yield place

    def tiles_in(self, views: Views, name: str) -> dict[tuple[int, int, int], list[list[Place]]]:
        """Read the tiles of a class back from the arrays: all places that each is sent to."""
        own, spanning, foreign = (
            views[f"{name}_{part}"] for part in ("own", "spanning", "foreign")
        )
        num_tiles, num_spanning = own.shape[1], spanning.shape[1]
        reads: dict[tuple[int, int], list[Place]] = {}
        where: dict[tuple[int, int], tuple[int, int]] = {}
        for instance, rows in enumerate(own):
            for row in rows_in_use(rows):
                tile = (instance, int(row[Row.TILE]))
                assert row[Row.TILE] < num_tiles and tile not in where
                where[tile] = (int(row[Row.POSITION]), int(row[Row.COUNT]))
                reads[tile] = self.read(views, instance, row)
            used = spanning[instance][spanning[instance] < num_tiles]
            assert len(set(used)) == len(used)
            assert (spanning[instance][len(used) :] == num_tiles).all()
        for instance, rows in enumerate(foreign):
            for row in rows_in_use(rows):
                home, span = divmod(int(row[Row.TILE]), num_spanning)
                tile = (home, int(spanning[home, span]))
                assert home != instance
                assert where[tile] == (row[Row.POSITION], row[Row.COUNT])
                reads[tile] += self.read(views, instance, row)
        found: dict[tuple[int, int, int], list[list[Place]]] = {}
        for (instance, index), places in reads.items():
            found.setdefault((instance, *where[instance, index]), []).append(places)
        return found

    def read(self, views: Views, instance: int, row: np.ndarray) -> list[Place]:
        """List the blocks of a row's range; their starts must be the ones in the table."""
        begin, end = row[Row.BEGIN], row[Row.END]
        assert 0 <= begin < end <= views["block_ids"].shape[1]
        starts = views["block_starts"][instance, begin:end]
        assert (np.diff(starts) > 0).all()
        return [Place(instance, int(block)) for block in views["block_ids"][instance, begin:end]]

    def check_tokens(self, plan: StepPlan, views: Views) -> None:
        """Verify every token's id, position and block; padding is dropped."""
        wanted: Counter[tuple[int, ...]] = Counter()
        for piece in pieces_of(plan):
            sequence = piece.sequence
            for at in range(piece.start, piece.start + piece.count):
                is_known = at < len(sequence.tokens)
                token = sequence.tokens[at] if is_known else -1
                place = sequence.table.place_of(at)
                assert place.instance == piece.instance
                wanted[piece.instance, token, at, place.index] += 1
        given: Counter[tuple[int, ...]] = Counter()
        for instance in range(self.loop.num_instances):
            for token, position, block in zip(
                views["tokens"][instance], views["positions"][instance], views["blocks"][instance],
                strict=True,
            ):  # fmt: skip
                if block != self.loop.num_blocks:
                    given[instance, int(token), int(position), int(block)] += 1
        assert given == wanted

    def check_outputs(self, encoded: Encoded, views: Views) -> None:
        """Verify that each output row is the token before the one it samples or scores."""
        rows = {(row.instance, row.row) for row in encoded.expected}
        assert len(rows) == len(encoded.expected)
        for row in encoded.expected:
            at = (row.instance, row.row)
            token = views["output_tokens"][at]
            assert views["positions"][row.instance, token] == row.position - 1
            if row.is_sample:
                assert views["slot"][at] == row.sequence.slot
                assert views["position"][at] == row.position
            else:
                assert views["target"][at] == row.sequence.tokens[row.position]
        for instance, slots in enumerate(views["slot"]):
            for row, slot in enumerate(slots):
                if (instance, row) not in rows:
                    assert slot == self.loop.num_slots

    def check_lists(self, views: Views) -> None:
        """Verify that rows only name blocks held by a running sequence (DESIGN invariant 3)."""
        for name in CLASSES:
            for groups in self.tiles_in(views, name).values():
                for places in groups:
                    for rmanager in self.loop.coordinator.rmanagers:
                        here = {p.index for p in places if p.instance == rmanager.instance}
                        assert any(
                            here <= {p.index for p in held_on(sequence, rmanager.instance)}
                            for sequence in self.loop.scheduler.running
                        )

    def check_load(self, asked: dict[str, list[Tile]], load: StepLoad) -> None:
        """Verify what each instance is said to do against the tiles of all layers but the last."""
        tiles = [*asked["decode"], *asked["prefill"]]
        num_tokens, kv_tokens, foreign = ([0] * self.loop.num_instances for _ in StepLoad._fields)
        for tile in tiles:
            num_tokens[tile.instance] += tile.count
            places = list(self.visible(tile))
            for place in places:
                kv_tokens[place.instance] += BLOCK_SIZE
            for instance in {place.instance for place in places} - {tile.instance}:
                foreign[instance] += tile.count
        assert load.num_tokens.tolist() == num_tokens
        assert load.kv_tokens.tolist() == kv_tokens
        assert load.foreign_tokens.tolist() == foreign


def held_on(sequence: Sequence, instance: int) -> list[Place]:
    return [place for place in sequence.table.held if place.instance == instance]


def rows_in_use(rows: np.ndarray) -> np.ndarray:
    """Cut padding off, which must come last."""
    num_used = int((rows[:, Row.COUNT] > 0).sum())
    assert (rows[num_used:, Row.COUNT] == 0).all()
    return rows[:num_used]


def tiles_of(plan: StepPlan, name: str, tile: int) -> Iterator[Tile]:
    """List the tiles of a class that a plan asks for."""
    if name == "output":
        for piece in pieces_of(plan):
            scored = range(piece.start, piece.start + piece.scores)
            sampled = [piece.start + piece.count - 1] * piece.samples
            for at in (*scored, *sampled):
                yield Tile(piece.sequence, piece.instance, at, 1)
        return
    for piece in plan.decodes if name == "decode" else plan.prefills:
        end = piece.start + piece.count
        for at in range(piece.start, end, tile):
            yield Tile(piece.sequence, piece.instance, at, min(tile, end - at))


def make_loop(**kwargs: Any) -> tuple[Loop, Inspector]:
    inspector = Inspector()
    inspector.loop = Loop(**kwargs, inspect=inspector)
    return inspector.loop, inspector


@settings(deadline=None, max_examples=60)
@given(kwargs=SETTINGS, data=st.data())
def test_every_visible_block_is_read_once_by_every_tile(kwargs: Any, data: st.DataObject) -> None:
    loop, _ = make_loop(**kwargs)
    for _ in range(data.draw(st.integers(1, 6))):
        prompt_len = data.draw(st.integers(1, loop.capacity))
        max_tokens = data.draw(st.integers(1, min(6, loop.capacity - prompt_len + 1)))
        loop.add(
            prompt_len,
            max_tokens,
            num_samples=data.draw(st.sampled_from([1, 1, 3])),
            prompt_logprobs=data.draw(st.sampled_from([None, None, 0])),
        )
        loop.step()
    loop.run()


@pytest.mark.parametrize("window", [None, 6])
def test_tiles_of_a_scattered_sequence_span(window: int | None) -> None:
    loop, inspector = make_loop(num_instances=3, num_blocks=8, policy="round_robin", window=window)
    sequence = loop.add(17, 8)[0]
    while not is_prefilled(sequence):
        loop.step()

    assert len(set(instances_of(sequence))) == 3
    loop.run()
    assert inspector.num_spanning > 8


def test_a_step_runs_in_the_smallest_shape_that_holds_it() -> None:
    shapes = []
    loop = Loop(2, 32, num_slots=16, tile=4, prefill_tiles=4, spread_tokens=64)
    loop.inspect = lambda plan, encoded: shapes.append(encoded.shape)
    loop.add(6, 3)
    loop.run()

    assert [(one.decode_rows, one.prefill_tiles, one.spanning) for one in shapes] == [
        (8, 2, False),
        (8, 0, False),
        (8, 0, False),
    ]


def test_a_sampled_row_carries_its_sequences_parameters() -> None:
    seen: list[tuple[Encoded, Views]] = []
    loop = Loop(1, 8)
    loop.inspect = lambda plan, encoded: seen.append(
        (encoded, host_views(encoded.buffer, encoded.shape))
    )
    (sequence,) = loop.add(
        5,
        3,
        temperature=0.7,
        top_p=0.9,
        min_p=0.05,
        top_k=11,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        logprobs=2,
        min_tokens=2,
    )
    loop.run()

    for step, (encoded, views) in enumerate(seen):
        (row,) = encoded.expected
        at = (row.instance, row.row)
        columns = {name: views[name][at] for name in PlanArrays._fields[16:]}
        assert {name: pytest.approx(value) for name, value in columns.items()} == {
            "slot": 0,
            "position": 5 + step,
            "seed_low": np.uint32(seed_words(7, 0)[0]).view(np.int32),
            "seed_high": np.uint32(seed_words(7, 0)[1]).view(np.int32),
            "top_k": 11,
            "target": -1,
            # The first two tokens may not end it.
            "flags": FLAG_ADJUST + FLAG_LOGPROBS + FLAG_BAN_STOP * (step < 2),
            "temperature": 0.7,
            "top_p": 0.9,
            "min_p": 0.05,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.25,
            "repetition_penalty": 1.5,
        }
    assert len(seen) == 3


def test_a_token_in_flight_is_left_to_the_device() -> None:
    tokens = []
    loop = Loop(1, 8)

    def look(plan: StepPlan, encoded: Encoded) -> None:
        views = host_views(encoded.buffer, encoded.shape)
        for piece in plan.decodes:
            tokens.append(int(views["tokens"][piece.instance, 0]))
            assert views["decode_slots"][piece.instance, 0] == piece.sequence.slot

    loop.inspect = look
    loop.add(1, 3)
    loop.run()

    # A prompt of one token is a decode row whose token is known.
    assert tokens == [0, -1, -1]
