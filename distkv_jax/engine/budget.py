"""What is left of the largest compiled shape while a step is being planned."""

from distkv_jax.engine.block_table import BlockTable
from distkv_jax.engine.shapes import ShapeTable


class Budget:
    """Rows, tiles and list entries each instance can still take in this step."""

    def __init__(self, shapes: ShapeTable, num_instances: int, num_running: int = 0) -> None:
        """Start with everything.

        Args:
            shapes: The compiled shapes.
            num_instances: Instances of the mesh.
            num_running: Sequences that may want to decode in this step.
        """
        self.num_running = num_running
        self.tile = shapes.tile
        self.decode_rows = [shapes.max_decode_rows] * num_instances
        self.prefill_tiles = [shapes.max_prefill_tiles] * num_instances
        self.output_rows = [shapes.max_output_rows] * num_instances
        self.entries = [shapes.entries] * num_instances

    def take_decode(self, instance: int, table: BlockTable) -> bool:
        """Take what a decode row needs; False, and nothing taken, where it does not fit."""
        if not self.decode_rows[instance] or not self.output_rows[instance]:
            return False
        if not self.take_entries(table):
            return False
        self.decode_rows[instance] -= 1
        self.output_rows[instance] -= 1
        return True

    def scoring_rows(self, instance: int) -> int:
        """Output rows for prompt log-probabilities: those that running sequences cannot need."""
        for_decodes = min(self.decode_rows[instance], self.num_running)
        return max(0, self.output_rows[instance] - for_decodes)

    def take_entries(self, table: BlockTable) -> bool:
        """Take room for a sequence's block lists; False, and nothing taken, where there is none.

        Only shared blocks, listed once for each sequence, can make the lists longer than the pools.
        """
        if any(len(local.ids) > self.entries[at] for at, local in table.local.items()):
            return False
        for at, local in table.local.items():
            self.entries[at] -= len(local.ids)
        return True

    def give_entries(self, table: BlockTable) -> None:
        """Give back what `take_entries` took for a table that has not grown since."""
        for at, local in table.local.items():
            self.entries[at] += len(local.ids)

    def take_tiles(self, instance: int, count: int, outputs: int) -> None:
        """Take the tiles and output rows of a span of `count` tokens; the caller has checked."""
        self.prefill_tiles[instance] -= -(-count // self.tile)
        self.output_rows[instance] -= outputs
