"""One instance's accounting: which sequence holds which blocks, its own or lent ones."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from distkv_jax.cache.block import BlockPool
from distkv_jax.cache.charges import Account, Charges, Holder
from distkv_jax.cache.messages import Entry, Heartbeat, Loan
from distkv_jax.errors import ConfigError, InvariantError, LendRefused, OutOfBlocks


class RManager:
    """Allocates one instance's blocks to sequences of any home.

    Local and remote requests come through the same calls; what differs is that a remote one is
    refused when free blocks are short or more than `lend_cap` would be lent. It is never
    passed on to another instance.

    Invariant: the pool counts exactly the holders recorded here, and each held block is
    charged once.
    """

    def __init__(self, instance: int, num_blocks: int, lend_cap: int) -> None:
        if not 0 <= lend_cap <= num_blocks:
            raise ConfigError(f"lend_cap={lend_cap} must be between 0 and num_blocks={num_blocks}")
        self.instance = instance
        self.lend_cap = lend_cap
        self.num_beats = 0
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
    def num_lendable(self) -> int:
        """Blocks that would be lent now; none where passed-on charges exceed the cap."""
        return max(0, min(self.num_free, self.lend_cap - self._charges.num_lent))

    @property
    def lent(self) -> Mapping[int, int]:
        """Blocks charged to other instances, by debtor; owned by this object."""
        return self._charges.lent

    @property
    def has_changed(self) -> bool:
        """Whether the next heartbeat has something to say."""
        return self._charges.has_changed

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

    def heartbeat(self, *, is_full: bool = False) -> Heartbeat:
        """Say what changed since the last heartbeat, or everything.

        Args:
            is_full: Say everything, for a gManager that did not hear all before.
        """
        accounts = self.accounts() if is_full else self._charges.changed_accounts()
        self._charges.forget_changes()
        self.num_beats += 1
        return Heartbeat(
            instance=self.instance,
            number=self.num_beats,
            is_full=is_full,
            num_free=self.num_free,
            num_held=self.num_blocks - self.num_free,
            num_lendable=self.num_lendable,
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
            InvariantError: Pool, holders and charges disagree.
        """
        self._pool.check()
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
