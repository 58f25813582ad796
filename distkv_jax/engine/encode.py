"""Turning a step plan into the arrays that the device reads."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from distkv_jax.engine.block_table import LocalBlocks
from distkv_jax.engine.plan import (
    FLAG_ADJUST,
    FLAG_BAN_STOP,
    FLAG_LOGPROBS,
    empty_buffer,
    host_views,
)
from distkv_jax.engine.scheduler import Piece, StepPlan
from distkv_jax.engine.sequence import Sequence
from distkv_jax.engine.shapes import PlanShape, ShapeTable
from pallas_kernels.micro_attention import Row


class Expected(NamedTuple):
    """What one output row means to the host.

    Attributes:
        sequence: Whose row.
        instance: Instance that computes it.
        row: Its output row there.
        position: Position of the token it gives or scores.
        is_sample: A token to append; else a prompt token's log-probability.
    """

    sequence: Sequence
    instance: int
    row: int
    position: int
    is_sample: bool

    @property
    def wants_logprobs(self) -> bool:
        """Whether its log-probabilities are to be read."""
        return not self.is_sample or self.sequence.params.logprobs is not None


class StepLoad(NamedTuple):
    """What a step asks of each instance, one number for each.

    Attributes:
        num_tokens: Tokens computed.
        kv_tokens: KV tokens that a layer reads, for own tiles and for those of others.
        foreign_tokens: Query tokens of others that have blocks here.
    """

    num_tokens: Int[np.ndarray, " instances"]
    kv_tokens: Int[np.ndarray, " instances"]
    foreign_tokens: Int[np.ndarray, " instances"]


def no_load(num_instances: int) -> StepLoad:
    """The load of a step in which nothing runs."""
    return StepLoad(*(np.zeros(num_instances, np.int64) for _ in StepLoad._fields))


class Encoded(NamedTuple):
    """A step as the device takes it, and what to expect of it."""

    shape: PlanShape
    buffer: np.ndarray
    expected: tuple[Expected, ...]
    num_spanning: int
    load: StepLoad

    @property
    def num_tokens(self) -> int:
        """Tokens computed, on all instances."""
        return int(self.load.num_tokens.sum())


class Tile(NamedTuple):
    """A query tile: `index` of its class on `instance`."""

    instance: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index: unused here)
    position: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.count: unused here)


class ClassPlan(NamedTuple):
    """The work arrays of one tile class, and how far each instance's rows are filled."""

    own: np.ndarray
    spanning: np.ndarray
    foreign: np.ndarray
    num_own: list[int]
    num_spanning: list[int]
    num_foreign: list[int]


class Encoder:
    """Encodes plans for one engine: bucket, block lists, tiles, outputs.

    Source: DESIGN "Plan size is O(blocks + tokens)": a tile carries the range of its sequence's
    local list that it can see, trimmed by causality and window; pairs are never written down.
    """

    def __init__(
        self,
        shapes: ShapeTable,
        *,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        window: int | None,
    ) -> None:
        self.shapes = shapes
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_slots = num_slots
        self.window = window

    def encode(self, plan: StepPlan, num_instances: int) -> Encoded:
        """Write a plan into the smallest shape that holds it."""
        return _Writer(self, plan, num_instances).write()


class _Writer:
    """One plan being written: the cursors of every instance."""

    def __init__(self, encoder: Encoder, plan: StepPlan, num_instances: int) -> None:
        self.encoder = encoder
        self.plan = plan
        self.tile_size = encoder.shapes.tile
        self.shape = self._choose_shape(num_instances)
        self.buffer = empty_buffer(
            self.shape, num_blocks=encoder.num_blocks, num_slots=encoder.num_slots
        )
        self.views = host_views(self.buffer, self.shape)
        self.decode = class_plan(self.views, "decode")
        self.prefill = class_plan(self.views, "prefill")
        self.output = class_plan(self.views, "output")
        self.num_entries = [0] * num_instances
        self.listed: dict[tuple[int, int], int] = {}
        self.expected: list[Expected] = []

    def write(self) -> Encoded:
        for piece in self.plan.decodes:
            self._write_decode(piece)
        for piece in self.plan.prefills:
            self._write_prefill(piece)
        return Encoded(
            self.shape,
            self.buffer,
            tuple(self.expected),
            sum(self.decode.num_spanning) + sum(self.prefill.num_spanning),
            self._load(),
        )

    def _load(self) -> StepLoad:
        """Sum up the work; the last layer's own class of tiles is left out."""
        load = no_load(len(self.num_entries))
        for piece in (*self.plan.decodes, *self.plan.prefills):
            load.num_tokens[piece.instance] += piece.count
        for tiles in (self.decode, self.prefill):
            for rows in (tiles.own, tiles.foreign):
                entries = (rows[:, :, Row.END] - rows[:, :, Row.BEGIN]).sum(axis=1)
                load.kv_tokens[:] += entries * self.encoder.block_size
            load.foreign_tokens[:] += tiles.foreign[:, :, Row.COUNT].sum(axis=1)
        return load

    def _choose_shape(self, num_instances: int) -> PlanShape:
        decode_rows = [0] * num_instances
        prefill_tiles = [0] * num_instances
        output_rows = [0] * num_instances
        for piece in self.plan.decodes:
            decode_rows[piece.instance] += 1
            output_rows[piece.instance] += 1
        for piece in self.plan.prefills:
            prefill_tiles[piece.instance] += -(-piece.count // self.tile_size)
            output_rows[piece.instance] += num_outputs(piece)
        # A sequence with blocks on two instances is taken to span: its tiles may see both.
        pieces = (*self.plan.decodes, *self.plan.prefills)
        return self.encoder.shapes.smallest(
            decode_rows=max(decode_rows),
            prefill_tiles=max(prefill_tiles),
            output_rows=max(output_rows),
            spanning=any(len(piece.sequence.table.local) > 1 for piece in pieces),
        )

    def _write_decode(self, piece: Piece) -> None:
        views, sequence, instance = self.views, piece.sequence, piece.instance
        row = self.decode.num_own[instance]
        known = piece.start < len(sequence.tokens)
        views["tokens"][instance, row] = sequence.tokens[piece.start] if known else -1
        views["decode_slots"][instance, row] = sequence.slot
        self._write_token_places(piece, row)
        self._add_tile(self.decode, sequence, Tile(instance, row, piece.start, 1))
        self._add_outputs(piece, row)

    def _write_prefill(self, piece: Piece) -> None:
        views, sequence, instance = self.views, piece.sequence, piece.instance
        tile, first_tile = self.tile_size, self.prefill.num_own[instance]
        first = self.shape.decode_rows + first_tile * tile
        end = piece.start + piece.count
        views["tokens"][instance, first : first + piece.count] = sequence.tokens[piece.start : end]
        self._write_token_places(piece, first)
        for index, at in enumerate(range(piece.start, end, tile)):
            count = min(tile, end - at)
            self._add_tile(self.prefill, sequence, Tile(instance, first_tile + index, at, count))
        self._add_outputs(piece, first)

    def _write_token_places(self, piece: Piece, first: int) -> None:
        """Write where each token is in its sequence, and the block that receives it."""
        end, table = piece.start + piece.count, piece.sequence.table
        tokens = slice(first, first + piece.count)
        self.views["positions"][piece.instance, tokens] = np.arange(piece.start, end)
        block_size = table.block_size
        first_block = piece.start // block_size
        blocks = [place.index for place in table.places[first_block : -(-end // block_size)]]
        in_blocks = np.arange(piece.start, end) // block_size - first_block
        self.views["blocks"][piece.instance, tokens] = np.array(blocks)[in_blocks]

    def _add_outputs(self, piece: Piece, first: int) -> None:
        """Ask for the logits of a piece's last token, and of prompt tokens to be scored."""
        asked = [(at, False) for at in range(piece.start, piece.start + piece.scores)]
        if piece.samples:
            asked.append((piece.start + piece.count - 1, True))
        for at, is_sample in asked:
            row = self.output.num_own[piece.instance]
            tile = Tile(piece.instance, row, at, 1)
            self._add_tile(self.output, piece.sequence, tile)
            self.views["output_tokens"][piece.instance, row] = first + at - piece.start
            self._write_sampling(piece, row, at + 1, is_sample)
            self.expected.append(Expected(piece.sequence, piece.instance, row, at + 1, is_sample))

    def _write_sampling(self, piece: Piece, row: int, position: int, is_sample: bool) -> None:
        views, sequence, at = self.views, piece.sequence, (piece.instance, row)
        params = sequence.params
        if not is_sample:
            views["target"][at] = sequence.tokens[position]
            views["flags"][at] = FLAG_LOGPROBS
            return
        views["slot"][at] = sequence.slot
        views["position"][at] = position
        low, high = np.array(sequence.seed_words, np.uint32).view(np.int32)
        views["seed_low"][at], views["seed_high"][at] = low, high
        views["temperature"][at] = params.temperature
        views["top_p"][at] = params.top_p
        views["min_p"][at] = params.min_p
        views["top_k"][at] = max(params.top_k, 0)
        views["presence_penalty"][at] = params.presence_penalty
        views["frequency_penalty"][at] = params.frequency_penalty
        views["repetition_penalty"][at] = params.repetition_penalty
        bans_stop = position - sequence.prompt_len < params.min_tokens
        views["flags"][at] = (
            FLAG_BAN_STOP * bans_stop
            + FLAG_ADJUST * params.adjusts_logits
            + FLAG_LOGPROBS * (params.logprobs is not None)
        )

    def _add_tile(self, tiles: ClassPlan, sequence: Sequence, tile: Tile) -> None:
        """Write a tile's work, on its own instance and on those that hold something for it."""
        spanning = -1
        for instance, local in sequence.table.local.items():
            begin, end = self._visible(local, sequence.table.block_size, tile)
            if instance != tile.instance and begin == end:
                continue
            base = self._list_blocks(sequence, instance, local)
            if instance == tile.instance:
                row, index = tiles.num_own[instance], tile.index
                tiles.num_own[instance] += 1
                target = tiles.own
            else:
                if spanning < 0:
                    spanning = tiles.num_spanning[tile.instance]
                    tiles.spanning[tile.instance, spanning] = tile.index
                    tiles.num_spanning[tile.instance] += 1
                row = tiles.num_foreign[instance]
                index = tile.instance * tiles.spanning.shape[1] + spanning
                tiles.num_foreign[instance] += 1
                target = tiles.foreign
            target[instance, row] = (index, base + begin, base + end, tile.position, tile.count)

    def _visible(self, local: LocalBlocks, block_size: int, tile: Tile) -> tuple[int, int]:
        window = self.encoder.window
        first = 0 if window is None else tile.position - window - block_size + 2
        return local.visible(first, tile.position + tile.count - 1)

    def _list_blocks(self, sequence: Sequence, instance: int, local: LocalBlocks) -> int:
        """Put a sequence's blocks into an instance's lists once; says at which entry they begin."""
        key = (id(sequence), instance)
        if key not in self.listed:
            base, count = self.num_entries[instance], len(local.ids)
            self.views["block_ids"][instance, base : base + count] = local.ids
            self.views["block_starts"][instance, base : base + count] = local.starts
            self.num_entries[instance] += count
            self.listed[key] = base
        return self.listed[key]


def class_plan(views: dict[str, np.ndarray], name: str) -> ClassPlan:
    """The tile class `name` of a plan, with nothing in it yet."""
    own, spanning, foreign = (views[f"{name}_{part}"] for part in ("own", "spanning", "foreign"))
    return ClassPlan(own, spanning, foreign, *([0] * len(own) for _ in range(3)))


def num_outputs(piece: Piece) -> int:
    """Output rows of a piece."""
    return piece.scores + piece.samples
