"""One instance's accounting: which sequence holds which blocks, its own or lent ones."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from distkv_jax.cache.block import BlockPool
from distkv_jax.cache.charges import Account, Charges, Holder
from distkv_jax.cache.messages import Entry, Heartbeat, Loan, ReservationId
from distkv_jax.cache.reservations import Reservation, Reservations
from distkv_jax.errors import ConfigError, InvariantError, LendRefused, OutOfBlocks


class RManager:
    """Allocates one instance's blocks to sequences of any home.

    Local and remote requests come through the same calls; what differs is that a remote one is
    refused when free blocks are short or more than `lend_cap` would be lent. It is never
    passed on to another instance. For moves
    between instances see `protocol`.

    Invariant: the pool counts exactly the holders recorded here, each held block is charged
    once, and each reserved block belongs to one reservation.

    Attributes:
        instance: Which one.
        lend_cap: Blocks that it lends at most.
        num_beats: Heartbeats so far.
        reservations: For moves to this instance.
    """

    def __init__(self, instance: int, num_blocks: int, lend_cap: int) -> None:
        if not 0 <= lend_cap <= num_blocks:
            raise ConfigError(f"lend_cap={lend_cap} must be between 0 and num_blocks={num_blocks}")
        self.instance = instance
        self.lend_cap = lend_cap
        self.num_beats = 0
        self._batch = 0
        self._is_news = False
        self.reservations = Reservations()
        self._pool = BlockPool(num_blocks)
        self._charges = Charges(instance, num_blocks)
        self._blocks: dict[Holder, dict[int, None]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return self._pool.num_free

    @property
    def num_reserved(self) -> int:
        """Blocks kept for moves under way."""
        return self._pool.num_reserved

    @property
    def num_lendable(self) -> int:
        """Blocks that would be lent now; none where passed-on charges exceed the cap.

        What is reserved for other homes counts as lent.
        """
        promised = self.reservations.num_reserved(except_home=self.instance)
        return max(0, min(self.num_free, self.lend_cap - self._charges.num_lent - promised))

    @property
    def lent(self) -> Mapping[int, int]:
        """Blocks charged to other instances, by debtor; owned by this object."""
        return self._charges.lent

    @property
    def has_changed(self) -> bool:
        """Whether the next heartbeat has something to say."""
        return self._is_news or self._charges.has_changed

    @property
    def batch(self) -> int:
        """Tokens that running sequences compute here in one decode step."""
        return self._batch

    @batch.setter
    def batch(self, batch: int) -> None:
        self._is_news = self._is_news or batch != self._batch
        self._batch = batch

    @property
    def holders(self) -> Iterable[Holder]:
        """Sequences that hold at least one block here."""
        return self._blocks.keys()

    def accounts(self) -> dict[Account, int]:
        """List the blocks held here, by whom they are charged to."""
        return self._charges.accounts()

    def lendable(self, home: int) -> int:
        """Tell how many blocks a sequence of `home` could be given now."""
        return self.num_free if home == self.instance else self.num_lendable

    def epoch(self, block: int) -> int:
        """Tell how often `block` has changed hands."""
        return self._pool.epoch(block)

    def charged(self, block: int) -> Holder | None:
        """Look up who is charged for `block`; nobody where nobody holds it."""
        return self._charges.charged(block)

    def line(self, block: int) -> tuple[Holder, ...]:
        """List who holds `block`: the one charged, then its heirs in order."""
        return self._charges.line(block)

    def holds(self, holder: Holder, block: int) -> bool:
        """Whether a sequence holds `block`."""
        return block in self._blocks.get(holder, {})

    def allocate(self, holder: Holder, count: int) -> tuple[int, ...]:
        """Hold `count` free blocks for a sequence.

        Raises:
            OutOfBlocks: A local sequence asks for more than is free; nothing was taken.
            LendRefused: A remote one asks for more than is free or may be lent; nothing was
                taken.
        """
        home = holder.account.home
        lendable = self.lendable(home)
        if count > lendable and home == self.instance:
            raise OutOfBlocks(
                f"needed {count} blocks, {lendable} free of {self.num_blocks} "
                f"on instance {self.instance}",
                needed=count,
                free=lendable,
            )
        if count > lendable:
            raise LendRefused(
                f"instance {self.instance} lends no {count} blocks to instance {home}: "
                f"{self.num_free} free of {self.num_blocks}, {self._charges.num_lent} lent, "
                f"lend cap {self.lend_cap}",
                needed=count,
                free=lendable,
            )
        blocks = self._pool.take(count)
        self._charges.hold(holder, blocks)
        self._record(holder, blocks)
        return blocks

    def share(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Hold blocks for a sequence too that others hold already; takes no free block.

        Raises:
            InvariantError: One is free, unknown, named twice or held by it already; nothing
                was shared.
        """
        twice = [block for block in blocks if block in self._blocks.get(holder, {})]
        if twice:
            raise InvariantError(
                f"sequence {holder.sequence} holds blocks {twice} "
                f"of instance {self.instance} already"
            )
        self._pool.share(blocks)
        self._charges.share(holder, blocks)
        self._record(holder, blocks)

    def release(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Let a sequence's `blocks` go; those that nobody holds any more are free.

        Raises:
            InvariantError: One is not held by it or named twice; nothing was released.
        """
        self.check_held(holder, blocks)
        self._pool.release(blocks)
        self._charges.release(holder, blocks)
        held = self._blocks.get(holder, {})
        for block in blocks:
            del held[block]
        if not held:
            self._blocks.pop(holder, None)

    def release_all(self, holder: Holder) -> None:
        """Let everything go that a sequence holds here, which may be nothing."""
        if holder in self._blocks:
            self.release(holder, tuple(self._blocks[holder]))

    def reserve(self, name: ReservationId, reservation: Reservation) -> tuple[int, ...]:
        """Keep blocks for a move, which `reservation` describes; its `blocks` are chosen here.

        Raises:
            OutOfBlocks: Too few blocks are free; nothing was reserved.
        """
        blocks = self._pool.reserve(reservation.num_blocks)
        self.reservations.add(name, reservation._replace(blocks=blocks))
        self._is_news = True
        return blocks

    def tick(self, step: int) -> None:
        """Go on to `step`: what was reserved until an earlier one is free."""
        for reservation in self.reservations.expire(step):
            self.drop(reservation.blocks)

    def lift(self, blocks: Sequence[int]) -> dict[int, tuple[Holder, ...]]:
        """Take blocks from everybody who holds them, to put others in their place at once.

        They are nobody's, and must be given to `adopt` or `drop` before anything else happens.

        Returns:
            Who held each: the one charged, then its heirs in order.
        """
        self._pool.lift(blocks)
        lines = {block: self._charges.lift(block) for block in blocks}
        for block, line in lines.items():
            for holder in line:
                held = self._blocks[holder]
                del held[block]
                if not held:
                    del self._blocks[holder]
        return lines

    def adopt(self, lines: Mapping[int, Sequence[Holder]]) -> None:
        """Give reserved or lifted blocks to those who hold them now; they change hands."""
        self._pool.hold_reserved({block: len(line) for block, line in lines.items()})
        for block, line in lines.items():
            self._charges.adopt(block, line)
            for holder in line:
                self._record(holder, [block])

    def drop(self, blocks: Sequence[int]) -> None:
        """Free reserved or lifted blocks."""
        self._pool.free_reserved(blocks)
        self._is_news = True

    def heartbeat(self, *, is_full: bool = False) -> Heartbeat:
        """Say what changed since the last heartbeat, or everything.

        Args:
            is_full: Say everything, for a gManager that did not hear all before.
        """
        accounts = self.accounts() if is_full else self._charges.changed_accounts()
        self._charges.forget_changes()
        self._is_news = False
        self.num_beats += 1
        return Heartbeat(
            instance=self.instance,
            number=self.num_beats,
            is_full=is_full,
            num_free=self.num_free,
            num_held=self._pool.num_held,
            num_reserved=self.num_reserved,
            num_lendable=self.num_lendable,
            batch=self.batch,
            loans=tuple(
                Loan(debtor=debtor, num_blocks=count)
                for debtor, count in sorted(self._charges.lent.items())
            ),
            entries=tuple(
                Entry(request_id=account.request_id, home=account.home, num_blocks=count)
                for account, count in accounts.items()
            ),
        )

    def check_held(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Verify that a sequence holds all of `blocks`, each named once.

        Raises:
            InvariantError: It does not.
        """
        held = self._blocks.get(holder, {})
        missing = [block for block in blocks if block not in held]
        if missing:
            raise InvariantError(
                f"sequence {holder.sequence} does not hold blocks {missing} "
                f"of instance {self.instance}"
            )
        if len(set(blocks)) != len(blocks):
            raise InvariantError(
                f"blocks {list(blocks)} of instance {self.instance} name one twice"
            )

    def check(self) -> None:
        """Verify the class invariant over all blocks.

        Raises:
            InvariantError: Pool, reservations, holders and charges disagree.
        """
        self._pool.check()
        self.reservations.check(self._pool.reserved)
        counts = Counter(block for blocks in self._blocks.values() for block in blocks)
        for block in range(self.num_blocks):
            if counts[block] != self._pool.count(block):
                raise InvariantError(
                    f"instance {self.instance}: block {block} has count "
                    f"{self._pool.count(block)} and {counts[block]} holders"
                )
        self._charges.check(self._blocks.items())

    def _record(self, holder: Holder, blocks: Sequence[int]) -> None:
        if blocks:
            self._blocks.setdefault(holder, {}).update(dict.fromkeys(blocks))
