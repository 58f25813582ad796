"""The engine's one door to all blocks: opens sequences, gives them places, takes them back."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from distkv_jax.cache.audit import check_holders, check_named, check_view, is_heard
from distkv_jax.cache.block import Place
from distkv_jax.cache.charges import Account, Holder, SequenceKey
from distkv_jax.cache.gmanager import Distance, GManager
from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.mover import Mover, Transfer
from distkv_jax.cache.moves import circles, ordered, recalled
from distkv_jax.cache.rmanager import RManager
from distkv_jax.cache.room import capacity, choose_home, room
from distkv_jax.cache.transport import InProcess
from distkv_jax.cache.usage import Usage, usage_of
from distkv_jax.errors import ConfigError, InvariantError, OutOfBlocks


class Coordinator:
    """Decides on which instance every sequence's blocks live.

    One engine thread owns it; no method is safe to call from two.

    Invariant: every block is free, held or reserved; only open sequences hold blocks; where
    gManager has heard everything, its ledger equals the sum of what the rManagers say.

    Attributes:
        rmanagers: One for each instance.
        gmanager: The global view; a new one may take its place at any time.
        mover: Moves blocks between instances.
    """

    def __init__(
        self,
        num_instances: int,
        blocks_per_instance: int,
        lend_cap: int | None = None,
        pooling: bool = True,
        distance: Distance | None = None,
        lease: int = 4,
    ) -> None:
        """Start with every block free.

        Args:
            num_instances: Pools, at least 1.
            blocks_per_instance: Blocks of each pool, at least 1.
            lend_cap: Blocks each instance may lend in all; every one by default.
            pooling: Whether anything is lent at all.
            distance: Cost of communication between instances; all equal by default.
            lease: Steps that a planned move may wait for its commit, at least 0.

        Raises:
            ConfigError: A number is out of range.
        """
        if num_instances < 1:
            raise ConfigError(f"num_instances={num_instances} must be at least 1")
        if lease < 0:
            raise ConfigError(f"lease={lease} must be at least 0")
        cap = blocks_per_instance if lend_cap is None else lend_cap
        self.num_instances = num_instances
        self.rmanagers = [
            RManager(instance, blocks_per_instance, cap if pooling else 0)
            for instance in range(num_instances)
        ]
        self.gmanager = GManager(num_instances, distance)
        self.mover = Mover(
            self.rmanagers,
            InProcess(self.rmanagers, lambda heartbeat: self.gmanager.receive(heartbeat)),
            lease=lease,
        )
        self._holders: dict[SequenceKey, Holder] = {}

    @property
    def num_free(self) -> int:
        """Free blocks of all instances."""
        return sum(rmanager.num_free for rmanager in self.rmanagers)

    @property
    def is_pooled(self) -> bool:
        """Whether any instance may lend."""
        return any(rmanager.lend_cap for rmanager in self.rmanagers)

    def capacity(self, home: int) -> int:
        """Tell how many blocks a sequence of `home` could have if nobody else had any."""
        return capacity(self.rmanagers, home)

    @property
    def max_blocks(self) -> int:
        """Blocks that a sequence could have if nobody else had any, at the best home."""
        return max(map(self.capacity, range(self.num_instances)))

    def choose_home(self, num_blocks: int, *, reserved: Sequence[int] | None = None) -> int:
        """Choose the instance with most free blocks, the lowest index among equals.

        Args:
            num_blocks: Blocks that the sequence will need.
            reserved: For each instance, free blocks already promised; none by default.

        Raises:
            OutOfBlocks: `num_blocks` could not be had from any home, ever.
        """
        return choose_home(self.rmanagers, num_blocks, reserved)

    def room(self, home: int, *, reserved: Sequence[int]) -> int:
        """Count the blocks a new sequence of `home` could be given, beside those promised.

        Args:
            home: Its home.
            reserved: For each instance, blocks promised to sequences of that home.

        Returns:
            Blocks; below zero where more is promised than there is.
        """
        return room(self.rmanagers, home, reserved)

    def lendable(self, home: int) -> list[int]:
        """List how many blocks each instance could give to a sequence of `home` now."""
        return [rmanager.lendable(home) for rmanager in self.rmanagers]

    def open(self, sequence: SequenceKey, request_id: str, home: int) -> None:
        """Begin a sequence, which holds nothing yet.

        Raises:
            InvariantError: It is open already, or there is no such home.
        """
        if sequence in self._holders:
            raise InvariantError(f"sequence {sequence} is open already")
        self._rmanager(home)
        self._holders[sequence] = Holder(sequence, Account(request_id, home))

    def take(self, sequence: SequenceKey, count: int, *, instance: int) -> tuple[Place, ...]:
        """Hold `count` free blocks of one instance.

        Raises:
            OutOfBlocks: The instance is the sequence's home and has too few free blocks;
                nothing was taken.
            LendRefused: It is another one, and will not lend as many; nothing was taken.
            InvariantError: The sequence is not open, or there is no such instance.
        """
        blocks = self._rmanager(instance).allocate(self._holder(sequence), count)
        return tuple(Place(instance, block) for block in blocks)

    def grow(
        self, sequence: SequenceKey, count: int, *, first: int | None = None
    ) -> tuple[Place, ...]:
        """Hold `count` free blocks, at home as far as they go, then of several creditors.

        Args:
            sequence: An open sequence.
            count: Blocks to take.
            first: Instance to ask before home, for instance the one of its last block.

        Raises:
            OutOfBlocks: All together could not give as many; nothing was taken.
            InvariantError: The sequence is not open, or there is no such instance.
        """
        holder = self._holder(sequence)
        home = holder.account.home
        places: list[Place] = []
        with contextlib.ExitStack() as undo:
            for instance in self._lenders(home, count, first):
                given = self._ask(sequence, count - len(places), instance)
                undo.callback(self.release, sequence, given)
                places.extend(given)
                if len(places) == count:
                    undo.pop_all()
                    return tuple(places)
        lendable = self.lendable(home)
        raise OutOfBlocks(
            f"needed {count} blocks, {sum(lendable)} to be had for instance {home}: "
            f"{lendable} of each instance",
            needed=count,
            free=sum(lendable),
        )

    def share(self, sequence: SequenceKey, places: Iterable[Place]) -> None:
        """Hold blocks too that other sequences hold; takes no free block.

        Raises:
            InvariantError: One is free or held by it already; nothing was shared.
        """
        holder = self._holder(sequence)
        with contextlib.ExitStack() as undo:
            for instance, blocks in _by_instance(places).items():
                self._rmanager(instance).share(holder, blocks)
                undo.callback(self.rmanagers[instance].release, holder, blocks)
            undo.pop_all()

    def release(self, sequence: SequenceKey, places: Iterable[Place]) -> None:
        """Let some of a sequence's blocks go; those that nobody else holds are free.

        Raises:
            InvariantError: One is not held by it or named twice; nothing was released.
        """
        holder = self._holder(sequence)
        groups = _by_instance(places)
        for instance, blocks in groups.items():
            self._rmanager(instance).check_held(holder, blocks)
        for instance, blocks in groups.items():
            self.rmanagers[instance].release(holder, blocks)

    def close(self, sequence: SequenceKey) -> None:
        """End a sequence: let everything go that it holds anywhere.

        Raises:
            InvariantError: It is not open, so perhaps closed twice.
        """
        holder = self._holder(sequence)
        for rmanager in self.rmanagers:
            rmanager.release_all(holder)
        del self._holders[sequence]

    def beat(self) -> None:
        """Let gManager hear every instance that changed; costs as much as the changes."""
        for rmanager in self.rmanagers:
            is_full = not is_heard(self.gmanager, rmanager)
            if is_full or rmanager.has_changed:
                self.mover.transport.tell(rmanager.heartbeat(is_full=is_full))

    def tick(self, step: int | None = None) -> None:
        """Go on to a step, the next one by default: plans and reservations may end there."""
        step = self.mover.step + 1 if step is None else step
        for rmanager in self.rmanagers:
            rmanager.tick(step)
        self.mover.tick(step)

    def set_batches(self, batches: Sequence[int]) -> None:
        """Say how many tokens running sequences compute on each instance in a decode step."""
        for rmanager, batch in zip(self.rmanagers, batches, strict=True):
            rmanager.batch = batch

    def move(self, orders: Sequence[MoveKVCache], limit: int) -> tuple[Transfer, ...]:
        """Plan moves as gManager ordered; what a destination refuses is left out.

        Nothing that sequences hold changes before `commit`; until then, `abort` or the end of
        the lease, the destinations keep the blocks.

        Args:
            orders: First come first served.
            limit: Blocks to move at most, in all.

        Raises:
            InvariantError: There is no such instance.
        """
        for order in orders:
            self._rmanager(order.source)
            self._rmanager(order.destination)
        return tuple(ordered(self.mover, orders, limit))

    def cancel_circles(self, limit: int) -> tuple[Transfer, ...]:
        """Plan to call home, by exchanges, what instances lent each other in circles.

        Works with every pool full. `commit` and `abort` as for `move`.
        """
        self.beat()
        return tuple(circles(self.mover, self.gmanager, limit))

    def recall(self, instance: int, count: int, limit: int) -> tuple[Transfer, ...]:
        """Plan to free blocks that an instance lent: home if possible, else to other creditors.

        Args:
            instance: The creditor, which needs memory.
            count: Blocks to free at most.
            limit: Blocks to move at most; a block may need others to make room at home.

        Raises:
            InvariantError: There is no such instance.
        """
        self._rmanager(instance)
        self.beat()
        return tuple(recalled(self.mover, self.gmanager, instance, count, limit))

    def commit(self, transfers: Sequence[Transfer]) -> tuple[Transfer, ...]:
        """Make planned transfers true, but for those whose blocks changed hands meanwhile.

        Returns:
            Those that are true now. Exactly these must be copied on the devices, all sources
            read before any destination is written, and named by `by_sequence` in block tables,
            before the next step is planned.
        """
        return self.mover.commit(transfers)

    def abort(self, transfers: Sequence[Transfer]) -> None:
        """Drop planned transfers, and let go what is reserved for them."""
        self.mover.abort(transfers)

    def epoch(self, place: Place) -> int:
        """Tell how often a block has changed hands."""
        return self._rmanager(place.instance).epoch(place.index)

    def check_plan(self, named: Iterable[tuple[SequenceKey, Place, int]]) -> None:
        """Verify that a step plan names only blocks that its sequences hold, in their epochs.

        Args:
            named: Sequence, place, and the place's epoch when the sequence's table got it.

        Raises:
            InvariantError: A block changed hands, or is not the sequence's.
        """
        for sequence, place, epoch in named:
            check_named(self._rmanager(place.instance), self._holder(sequence), place, epoch)

    def usage(self) -> list[Usage]:
        """List every instance's blocks by state."""
        self.beat()
        return [usage_of(self.gmanager.ledger, i) for i in range(self.num_instances)]

    def placement(self) -> dict[str, dict[int, int]]:
        """List blocks by request and instance, each under the request charged for it."""
        self.beat()
        return self.gmanager.placement.requests()

    def check(self) -> None:
        """Verify the class invariant over all blocks.

        Raises:
            InvariantError: It is broken; says where, with numbers.
        """
        check_holders(self.rmanagers, self._holders.values())
        for rmanager in self.rmanagers:
            check_view(self.gmanager, rmanager)

    def check_idle(self) -> None:
        """Verify that nothing is open, hence nothing held, and all that `check` does.

        Raises:
            InvariantError: Something is; says what, with numbers.
        """
        self.check()
        if self._holders:
            total = sum(rmanager.num_blocks for rmanager in self.rmanagers)
            raise InvariantError(
                f"idle with {len(self._holders)} open sequences and "
                f"{total - self.num_free} of {total} blocks held"
            )

    def _lenders(self, home: int, count: int, first: int | None) -> Iterator[int]:
        if first is not None:
            yield first
        yield home
        yield from self.gmanager.propose_creditors(home, count)
        # That view may be a step old: look again before giving up.
        self.beat()
        yield from self.gmanager.propose_creditors(home, count)

    def _ask(self, sequence: SequenceKey, count: int, instance: int) -> tuple[Place, ...]:
        """Take up to `count` blocks: all, or as many as the refusal says there are."""
        try:
            return self.take(sequence, count, instance=instance)
        except OutOfBlocks as refused:
            return self.take(sequence, refused.free, instance=instance)

    def _holder(self, sequence: SequenceKey) -> Holder:
        try:
            return self._holders[sequence]
        except KeyError:
            raise InvariantError(f"sequence {sequence} is not open") from None

    def _rmanager(self, instance: int) -> RManager:
        if not 0 <= instance < self.num_instances:
            raise InvariantError(f"instance {instance}, expected below {self.num_instances}")
        return self.rmanagers[instance]


def _by_instance(places: Iterable[Place]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for instance, block in places:
        groups.setdefault(instance, []).append(block)
    return groups
