"""Preempted blocks in host memory, as the leader knows them: what to save, fetch and forget.

Decides and accounts; it knows no device. Hosts answer late or never: only what they said to have is
fetched, everything else is computed again.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from distkv_jax.cache.audit import check_hosts
from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.messages import FromHost, Heartbeat, NotSaved, Saved
from distkv_jax.cache.usage import Usage, usage_of
from distkv_jax.engine.commands import NOT_WANTED, Fetch, Forget, HostCommand, Save
from distkv_jax.engine.sequence import Sequence
from distkv_jax.errors import InvariantError


class Kept(NamedTuple):
    """Blocks of a sequence that hosts were asked to keep.

    Attributes:
        save_id: The save.
        home: Where the sequence was at home.
        places: Where they were, in the order of their tokens.
        num_dropped: Blocks before them that had left the window.
        num_computed: Tokens up to the last one in them.
    """

    save_id: int
    home: int
    places: tuple[Place, ...]
    num_dropped: int
    num_computed: int


class HostTier:
    """Saves the blocks of preempted sequences, and gives them back when these go on.

    A block goes back to the instance that it came from, whose host has it.

    Invariant: a save is known here from its order to its `Fetch` or `Forget`, one at most for each
    sequence.

    Attributes:
        gmanager: What hosts said in their heartbeats.
        orders: What the runner is still to be told, in this order, all with number 0.
        num_fetched_tokens: Tokens that were not computed again.
    """

    def __init__(self, num_instances: int, num_blocks: int = 0) -> None:
        """Know nothing yet.

        Args:
            num_instances: Of the mesh.
            num_blocks: Blocks of host memory for each; 0 saves nothing.
        """
        self.gmanager = GManager(num_instances)
        self.orders: list[HostCommand] = []
        self.num_fetched_tokens = 0
        self._num_instances = num_instances
        self._is_on = num_blocks > 0
        self._num_saves = 0
        self._kept: dict[Hashable, Kept] = {}
        # Of the saves that are known: who said to have its part.
        self._saved: dict[int, set[int]] = {}

    def listen(self, messages: Iterable[FromHost]) -> None:
        """Hear what hosts said, in any order and any number of times."""
        for message in messages:
            match message:
                case Heartbeat():
                    self.gmanager.receive(message)
                case Saved():
                    if message.save_id in self._saved:
                        self._saved[message.save_id].add(message.instance)
                case NotSaved():
                    # As if it had never answered.
                    pass

    def take_orders(self) -> list[HostCommand]:
        """Hand over what the runner is to be told, before it runs another step."""
        orders, self.orders = self.orders, []
        return orders

    def save(self, sequence: Sequence) -> None:
        """Order a sequence's blocks to be kept; the next step may write into them."""
        table = sequence.table
        if not self._is_on or sequence.num_computed < table.block_size:
            return
        end = -(-sequence.num_computed // table.block_size)
        places = tuple(table.places[table.num_dropped : end])
        self._num_saves += 1
        kept = Kept(
            self._num_saves, sequence.home, places, table.num_dropped, sequence.num_computed
        )
        self._kept[sequence.key] = kept
        self._saved[kept.save_id] = set()
        blocks = tuple(
            tuple(place.index for place in places if place.instance == instance)
            for instance in range(self._num_instances)
        )
        self.orders.append(Save(0, kept.save_id, sequence.key.request_id, sequence.home, blocks))

    def find(self, sequence: Sequence) -> Kept | None:
        """Tell what of a sequence is surely in host memory: its first blocks, or None."""
        kept = self._kept.get(sequence.key)
        if kept is None:
            return None
        said = self._saved[kept.save_id]
        absent = (at for at, place in enumerate(kept.places) if place.instance not in said)
        return self._cut(kept, next(absent, len(kept.places)), sequence)

    def restore(self, sequence: Sequence, coordinator: Coordinator) -> None:
        """Give back what is surely there to a sequence that was just opened; forget the rest.

        As far as the instances have free blocks. Its table has none, or those that it shares.
        """
        kept = self.find(sequence)
        if kept is not None:
            kept = self._cut(kept, self._num_to_be_had(kept, sequence, coordinator), sequence)
        if kept is None or kept.num_computed <= sequence.num_computed:
            self.forget(sequence.key)
            return
        del self._kept[sequence.key], self._saved[kept.save_id]
        table = sequence.table
        table.skip(kept.num_dropped)
        num_shared = len(table.places)
        blocks: list[list[int]] = [[] for _ in range(self._num_instances)]
        for at, (instance, _) in enumerate(kept.places, start=kept.num_dropped):
            if at < num_shared:
                blocks[instance].append(NOT_WANTED)
                continue
            places = coordinator.take(sequence.key, 1, instance=instance)
            table.append(places)
            blocks[instance].append(places[0].index)
        self.num_fetched_tokens += kept.num_computed - sequence.num_computed
        sequence.num_computed = kept.num_computed
        self.orders.append(Fetch(0, kept.save_id, tuple(map(tuple, blocks))))

    def forget(self, key: Hashable) -> None:
        """Free what is kept of a sequence, which may be nothing."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            del self._saved[kept.save_id]
            self.orders.append(Forget(0, kept.save_id))

    def forget_all(self) -> None:
        """Know nothing any more; the runner's `reset` frees it."""
        self._kept.clear()
        self._saved.clear()
        self.orders.clear()

    def usage(self) -> list[Usage]:
        """List what every host said last of its blocks; nothing where there are none."""
        if not self._is_on:
            return []
        return [usage_of(self.gmanager.ledger, at) for at in range(self._num_instances)]

    def check_idle(self, pools: Iterable[HostPool]) -> None:
        """Verify that nothing is kept.

        Args:
            pools: Of the hosts that can be asked.

        Raises:
            InvariantError: Something is; says what.
        """
        check_hosts(self.gmanager, pools, self._saved)
        if self._kept:
            raise InvariantError(f"idle with saves of {len(self._kept)} sequences")

    def _cut(self, kept: Kept, count: int, sequence: Sequence) -> Kept | None:
        """Keep the first `count` blocks; None where they are of no use."""
        # Without the others a window would have a hole.
        if not count or (kept.num_dropped and count < len(kept.places)):
            return None
        end = (kept.num_dropped + count) * sequence.table.block_size
        return kept._replace(places=kept.places[:count], num_computed=min(kept.num_computed, end))

    def _num_to_be_had(self, kept: Kept, sequence: Sequence, coordinator: Coordinator) -> int:
        """Count the first blocks for which their instances have free ones."""
        room = coordinator.lendable(sequence.home)
        for at, place in enumerate(kept.places):
            if kept.num_dropped + at < len(sequence.table.places):
                continue
            if not room[place.instance]:
                return at
            room[place.instance] -= 1
        return len(kept.places)
