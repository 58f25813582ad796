"""Moves of blocks as rounds of one compiled program, each small enough to fit between steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from distkv_jax.attention import move_blocks
from distkv_jax.cache.block import Place
from distkv_jax.engine.step import Pools
from distkv_jax.errors import InvariantError

LANES = 2
"""Blocks that one instance can send to each other one in a round: a run copies as many at most."""

Lanes: TypeAlias = Int[Array, "senders receivers lanes"]
"""Block indices by pair of instances, the leading axis sharded over `instance`."""


class Copy(NamedTuple):
    """A block's contents are to be copied.

    Attributes:
        source: From here.
        destination: To here, on another instance.
    """

    source: Place
    destination: Place


class Round(NamedTuple):
    """One run of the program: every block is read before any is written.

    Attributes:
        send: For each instance, the blocks that it sends to each other one.
        receive: For each instance, the blocks that take what each other one sends.
    """

    send: Int[np.ndarray, "instances instances lanes"]
    receive: Int[np.ndarray, "instances instances lanes"]


def make_move(
    mesh: Mesh,
) -> Callable[
    [
        Pools,
        Int[Array, "instances instances lanes"],
        Int[Array, "instances instances lanes"],
    ],
    Pools,
]:
    """Build the function of a round, for all layers; jit it with the pools donated."""

    def instance_move(
        pools: Pools,
        send: Int[Array, "1 instances lanes"],
        receive: Int[Array, "1 instances lanes"],
    ) -> Pools:
        return tuple(move_blocks(pool, send[0], receive[0]) for pool in pools)

    return jax.shard_map(
        instance_move,
        mesh=mesh,
        in_specs=P("instance"),
        out_specs=P("instance"),
        axis_names={"instance"},
        check_vma=False,
    )


def to_rounds(
    copies: Sequence[Copy], *, num_instances: int, num_blocks: int, lanes: int
) -> list[Round]:
    """Cut copies that count as simultaneous into rounds.

    A block is written no earlier than in the round that reads it. Copies that wait for each other
    in a circle go into one round together.

    Args:
        copies: No block is written twice, none is read twice.
        num_instances: Instances of the mesh.
        num_blocks: Blocks of each; that index drops what is received.
        lanes: Blocks that one instance can send to another one in a round.

    Raises:
        InvariantError: A block is read or written twice, a copy stays on its instance, or a circle
            wants more lanes than there are.
    """
    check_copies(copies)
    rounds: list[_RoundInMaking] = []
    for group in in_order(copies):
        # The first round that is not before any that these blocks wait for: groups come in order.
        at = next((i for i in reversed(range(len(rounds))) if rounds[i].is_read_in(group)), 0)
        while at < len(rounds) and not rounds[at].has_lanes(group, lanes):
            at += 1
        if at == len(rounds):
            rounds.append(_RoundInMaking(num_instances))
            if not rounds[at].has_lanes(group, lanes):
                raise InvariantError(
                    f"a circle of {len(group)} copies wants more than {lanes} lanes"
                )
        rounds[at].add(group)
    return [made.arrays(num_blocks, lanes) for made in rounds]


def in_order(copies: Sequence[Copy]) -> list[list[Copy]]:
    """Order copies so that a block is read before it is written; circles stay together."""
    reader = {copy.source: copy for copy in copies}
    groups: list[list[Copy]] = []
    done: set[Place] = set()
    for copy in copies:
        path: list[Copy] = []
        while copy.source not in done:
            done.add(copy.source)
            path.append(copy)
            following = reader.get(copy.destination)
            if following is None:
                break
            copy = following
        # The last one of a path writes what nobody reads, or what an earlier path has read, or,
        # where the path is a circle, what its first one reads.
        is_circle = bool(path) and path[-1].destination == path[0].source
        groups += [path] if is_circle else [[one] for one in reversed(path)]
    return groups


def check_copies(copies: Sequence[Copy]) -> None:
    """Refuse copies that cannot be simultaneous.

    Raises:
        InvariantError: Says which.
    """
    for what in ("source", "destination"):
        places = [getattr(copy, what) for copy in copies]
        if len(set(places)) != len(places):
            raise InvariantError(f"copies name a {what} twice: {sorted(places)}")
    for copy in copies:
        if copy.source.instance == copy.destination.instance:
            raise InvariantError(f"{copy} stays on its instance")


class _RoundInMaking:
    """Copies of one round, by pair of instances."""

    def __init__(self, num_instances: int) -> None:
        self.num_instances = num_instances
        self.pairs: dict[tuple[int, int], list[Copy]] = {}
        self.sources: set[Place] = set()

    def is_read_in(self, group: list[Copy]) -> bool:
        """Whether a block that the group writes is read in this round."""
        return any(copy.destination in self.sources for copy in group)

    def has_lanes(self, group: list[Copy], lanes: int) -> bool:
        """Whether the group fits too."""
        wanted: dict[tuple[int, int], int] = {}
        for copy in group:
            pair = (copy.source.instance, copy.destination.instance)
            wanted[pair] = wanted.get(pair, 0) + 1
        return all(len(self.pairs.get(pair, ())) + count <= lanes for pair, count in wanted.items())

    def add(self, group: list[Copy]) -> None:
        """Take a group in."""
        for copy in group:
            pair = (copy.source.instance, copy.destination.instance)
            self.pairs.setdefault(pair, []).append(copy)
            self.sources.add(copy.source)

    def arrays(self, num_blocks: int, lanes: int) -> Round:
        """Write the round down."""
        shape = (self.num_instances, self.num_instances, lanes)
        send = np.zeros(shape, np.int32)
        receive = np.full(shape, num_blocks, np.int32)
        for (source, destination), copies in self.pairs.items():
            for lane, copy in enumerate(copies):
                send[source, destination, lane] = copy.source.index
                receive[destination, source, lane] = copy.destination.index
        return Round(send, receive)
