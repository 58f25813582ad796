"""What the blocks of all pools hold, token by token, as the devices would have it."""

from collections.abc import Sequence as Several

from distkv_jax.cache.block import Place
from distkv_jax.engine.moves import Copy, check_copies
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.scheduler import Piece


class Contents(Runner):
    """Runs copies and steps on names of tokens instead of keys and values.

    A token is named by its request and position: what samples share they may both read.

    Attributes:
        num_moved: Blocks copied so far.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.num_moved = 0
        self._tokens: dict[tuple[Place, int], tuple[str, int]] = {}

    def move(self, copies: Several[Copy]) -> None:
        check_copies(copies)
        slots = range(self.block_size)
        read = {copy: [self._tokens.get((copy.source, slot)) for slot in slots] for copy in copies}
        for copy, tokens in read.items():
            for slot, token in enumerate(tokens):
                if token is not None:
                    self._tokens[copy.destination, slot] = token
        self.num_moved += len(copies)

    def run(self, pieces: Several[Piece], window: int | None) -> None:
        """Write every token of a step, then verify that each reads what it may see."""
        for piece in pieces:
            for at in range(piece.start, piece.start + piece.count):
                place, slot = self.slot_of(piece, at)
                assert place.instance == piece.instance
                self._tokens[place, slot] = (piece.sequence.key.request_id, at)
        for piece in pieces:
            first = 0 if window is None else max(0, piece.start - window + 1)
            for at in range(first, piece.start + piece.count):
                token = (piece.sequence.key.request_id, at)
                assert self._tokens[self.slot_of(piece, at)] == token

    def slot_of(self, piece: Piece, at: int) -> tuple[Place, int]:
        """Say where a position is."""
        return piece.sequence.table.place_of(at), at % self.block_size
