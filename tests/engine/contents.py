"""What the blocks of all pools hold, token by token, as the devices would have it."""

from collections.abc import Callable
from collections.abc import Sequence as Several

from distkv_jax.cache.block import Place
from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import NOT_WANTED, Fetch, Forget, HostCommand, Save
from distkv_jax.engine.moves import Copy, check_copies
from distkv_jax.engine.runner import Runner
from distkv_jax.engine.scheduler import Piece
from tests.cache.faulty import Fate


class Contents(Runner):
    """Runs copies and steps on names of tokens instead of keys and values.

    A token is named by its request and position: what samples share they may both read.

    Attributes:
        num_moved: Blocks copied so far.
        moved: Where they were and are, until somebody empties it.
        num_fetched: Sequences that got something back from host memory.
        fate: Asked what becomes of each message of the hosts.
    """

    def __init__(
        self,
        block_size: int,
        num_instances: int = 1,
        host_blocks: int = 0,
        fate: Callable[[], Fate] = lambda: "arrives",
    ) -> None:
        self.block_size = block_size
        self.num_moved = self.num_fetched = 0
        self.moved: set[Place] = set()
        self.fate = fate
        self._hosts = [
            HostPool(at, host_blocks) for at in range(num_instances if host_blocks else 0)
        ]
        self._host: dict[tuple[int, int], list[tuple[str, int] | None]] = {}
        self._said: list[FromHost] = [pool.heartbeat() for pool in self._hosts]
        self._late: list[FromHost] = []
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
        self.moved |= {place for copy in copies for place in copy}

    @property
    def host_pools(self) -> list[HostPool]:
        return self._hosts

    def order(self, command: HostCommand) -> None:
        match command:
            case Save(_, save_id, request_id, home, blocks):
                for pool, ids in zip(self._hosts, blocks, strict=True):
                    if not ids:
                        continue
                    self._said.append(pool.save(save_id, request_id, home, len(ids)))
                    places = [Place(pool.rmanager.instance, block) for block in ids]
                    for kept, place in zip(pool.blocks(save_id), places, strict=False):
                        self._host[pool.rmanager.instance, kept] = self._tokens_at(place)
            case Fetch(_, save_id, blocks):
                for pool, ids in zip(self._hosts, blocks, strict=True):
                    kept = pool.blocks(save_id)
                    assert len(ids) <= len(kept), "fetched what no host said to have"
                    for source, block in zip(kept, ids, strict=False):
                        if block != NOT_WANTED:
                            tokens = self._host[pool.rmanager.instance, source]
                            self._put(Place(pool.rmanager.instance, block), tokens)
                    pool.forget(save_id)
                self.num_fetched += 1
            case Forget(_, save_id):
                for pool in self._hosts:
                    pool.forget(save_id)
        self._said += [pool.heartbeat() for pool in self._hosts]

    def hear(self) -> list[FromHost]:
        heard: list[FromHost] = []
        for message in self._said:
            match self.fate():
                case "is lost":
                    pass
                case "is late":
                    self._late.append(message)
                case "arrives twice":
                    heard += [message, message]
                case _:
                    heard.append(message)
        if self.fate() == "arrives":
            self._late.reverse()
            heard += self._late
            self._late = []
        self._said = []
        return heard

    def _tokens_at(self, place: Place) -> list[tuple[str, int] | None]:
        return [self._tokens.get((place, slot)) for slot in range(self.block_size)]

    def _put(self, place: Place, tokens: list[tuple[str, int] | None]) -> None:
        for slot, token in enumerate(tokens):
            # What was there is gone, as on a device.
            self._tokens.pop((place, slot), None)
            if token is not None:
                self._tokens[place, slot] = token

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
