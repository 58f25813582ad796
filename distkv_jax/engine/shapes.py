"""The few shapes that programs are compiled for, chosen in this one place."""

import dataclasses

from distkv_jax.engine.config import EngineConfig

# With fewer XLA:CPU falls off its fast matrix product: in bfloat16 1 row costs ten times 4.
MIN_DECODE_ROWS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PlanShape:
    """Sizes of one compiled step, per instance.

    Attributes:
        decode_rows: Decode tiles (one token each).
        prefill_tiles: Prefill tiles (up to `tile` tokens each).
        spanning: Whether tiles may have blocks elsewhere; without, there is no collective for it.
        tile: Tokens of a prefill tile.
        entries: Entries of the block lists.
        instances: Instances of the mesh.
    """

    decode_rows: int
    prefill_tiles: int
    spanning: bool
    tile: int
    entries: int
    instances: int

    @property
    def tokens(self) -> int:
        """Tokens computed in a step, padding included: decode rows first."""
        return self.decode_rows + self.prefill_tiles * self.tile

    @property
    def output_rows(self) -> int:
        """Rows whose logits are computed: every decode row, and one for each prefill tile."""
        return self.decode_rows + self.prefill_tiles

    def spanning_rows(self, tiles: int) -> int:
        """Rows of a class that may span: all of its tiles, or none."""
        return tiles if self.spanning else 0

    def __str__(self) -> str:
        kind = "spanning" if self.spanning else "local"
        return f"decode {self.decode_rows}, prefill {self.prefill_tiles}×{self.tile}, {kind}"


class ShapeTable:
    """The buckets of an engine; every step runs in the smallest one that holds it."""

    def __init__(
        self,
        *,
        max_decode_rows: int,
        max_prefill_tiles: int,
        tile: int,
        entries: int,
        instances: int,
        pooling: bool,
    ) -> None:
        def shapes(decode_rows: int, prefill_tiles: int) -> list[PlanShape]:
            return [
                PlanShape(
                    decode_rows=decode_rows,
                    prefill_tiles=prefill_tiles,
                    spanning=spanning,
                    tile=tile,
                    entries=entries,
                    instances=instances,
                )
                for spanning in ((False, True) if pooling and instances > 1 else (False,))
            ]

        few_rows, few_tiles = min(8, max_decode_rows), min(2, max_prefill_tiles)
        sizes = {(few_rows, 0), (max_decode_rows, 0), (max_decode_rows, max_prefill_tiles)}
        if few_tiles < max_prefill_tiles:
            sizes.add((few_rows, few_tiles))
        self.tile = tile
        self.entries = entries
        self.max_decode_rows = max_decode_rows
        self.max_prefill_tiles = max_prefill_tiles
        self.shapes = [shape for size in sorted(sizes) for shape in shapes(*size)]

    @property
    def max_output_rows(self) -> int:
        """Output rows of the largest shape."""
        return self.max_decode_rows + self.max_prefill_tiles

    def smallest(
        self, *, decode_rows: int, prefill_tiles: int, output_rows: int, spanning: bool
    ) -> PlanShape:
        """The cheapest shape that holds a step of these sizes (per instance, the largest)."""
        return next(
            shape
            for shape in self.shapes
            if shape.decode_rows >= decode_rows
            and shape.prefill_tiles >= prefill_tiles
            and shape.output_rows >= output_rows
            and shape.spanning >= spanning
        )


def shape_table(config: EngineConfig, num_instances: int, num_blocks: int) -> ShapeTable:
    """The buckets: lists are twice the pool, since samples list their shared blocks each."""
    return ShapeTable(
        max_decode_rows=max(MIN_DECODE_ROWS, config.max_num_seqs),
        max_prefill_tiles=config.prefill_tiles,
        tile=config.tile,
        entries=2 * num_blocks,
        instances=num_instances,
        pooling=config.pooling,
    )
