"""Who is charged for each held block of one instance: its first holder, then the next."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from distkv_jax.errors import InvariantError

SequenceKey: TypeAlias = Hashable
"""Names one sequence while it is open; the engine chooses it."""

Key = TypeVar("Key", bound=Hashable)


class Account(NamedTuple):
    """What blocks are charged to.

    Attributes:
        request_id: The request.
        home: Instance whose debt they are.
    """

    request_id: str
    home: int


class Holder(NamedTuple):
    """A sequence as every rManager knows it.

    Attributes:
        sequence: Its key.
        account: What its blocks are charged to.
    """

    sequence: SequenceKey
    account: Account


class Charges:
    """Charges every held block of one instance once, to the holder that came first.

    When that one releases it, the charge passes on to the holder next in line. This can lend
    a block that was local, whatever the lend cap says: a release is never refused.

    Invariant: a block has a charged holder if anybody holds it, heirs only if it has a charged
    holder, and the accounts and loans are the sums over the charged holders.
    """

    def __init__(self, instance: int, num_blocks: int) -> None:
        self.instance = instance
        self.num_lent = 0
        self._charged: list[Holder | None] = [None] * num_blocks
        self._heirs: dict[int, list[Holder]] = {}
        self._accounts: dict[Account, int] = {}
        self._lent: dict[int, int] = {}
        self._changed: dict[Account, None] = {}

    @property
    def has_changed(self) -> bool:
        """Whether an account changed since `forget_changes`."""
        return bool(self._changed)

    @property
    def lent(self) -> Mapping[int, int]:
        """Blocks charged to other instances, by debtor; owned by this object."""
        return self._lent

    def accounts(self) -> dict[Account, int]:
        """List what every account is charged for, in blocks."""
        return dict(self._accounts)

    def changed_accounts(self) -> dict[Account, int]:
        """List the accounts changed since `forget_changes`; 0 for one that is gone."""
        return {account: self._accounts.get(account, 0) for account in self._changed}

    def forget_changes(self) -> None:
        """Start `changed_accounts` afresh."""
        self._changed.clear()

    def hold(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Charge `blocks`, which nobody held, to `holder`."""
        for block in blocks:
            self._charged[block] = holder
        self._charge(holder.account, len(blocks))

    def share(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Put `holder` last in line for `blocks`, which others hold."""
        for block in blocks:
            self._heirs.setdefault(block, []).append(holder)

    def release(self, holder: Holder, blocks: Sequence[int]) -> None:
        """Take `holder` off `blocks`, which it holds; heirs are charged in its place."""
        charges: Counter[Account] = Counter()
        for block in blocks:
            heirs = self._heirs.get(block, [])
            if self._charged[block] != holder:
                heirs.remove(holder)
            else:
                charges[holder.account] -= 1
                heir = heirs.pop(0) if heirs else None
                self._charged[block] = heir
                if heir is not None:
                    charges[heir.account] += 1
            if not heirs:
                self._heirs.pop(block, None)
        for account, count in charges.items():
            self._charge(account, count)

    def charged(self, block: int) -> Holder | None:
        """Look up who is charged for `block`; nobody where nobody holds it."""
        return self._charged[block]

    def line(self, block: int) -> tuple[Holder, ...]:
        """List who holds `block`: the one charged, then its heirs in order."""
        holder = self._charged[block]
        return () if holder is None else (holder, *self._heirs.get(block, ()))

    def adopt(self, block: int, line: Sequence[Holder]) -> None:
        """Charge a block that nobody held to the first of `line`; the others are its heirs."""
        self.hold(line[0], [block])
        for heir in line[1:]:
            self.share(heir, [block])

    def lift(self, block: int) -> tuple[Holder, ...]:
        """Take `block` from everybody who holds it, and list them as `line` did."""
        line = self.line(block)
        self._heirs.pop(block, None)
        self._charged[block] = None
        self._charge(line[0].account, -1)
        return line

    def check(self, holdings: Iterable[tuple[Holder, Iterable[int]]]) -> None:
        """Verify the class invariant against what each holder holds.

        Raises:
            InvariantError: A charge, heir, account or loan does not follow from `holdings`.
        """
        holders = {block: [holder] for block, holder in enumerate(self._charged) if holder}
        for block, heirs in self._heirs.items():
            if not heirs or block not in holders:
                raise self._broken(f"block {block} has heirs {heirs} and no charged holder")
            holders[block].extend(heirs)
        said = Counter((block, holder) for block, line in holders.items() for holder in line)
        held = Counter((block, holder) for holder, blocks in holdings for block in blocks)
        if said != held:
            raise self._broken(f"holders {said - held} without and {held - said} with a block")
        accounts = Counter(holder.account for holder in self._charged if holder)
        if accounts != self._accounts:
            raise self._broken(f"accounts {self._accounts}, expected {dict(accounts)}")
        lent: Counter[int] = Counter()
        for account, count in accounts.items():
            if account.home != self.instance:
                lent[account.home] += count
        if lent != self._lent or lent.total() != self.num_lent:
            raise self._broken(f"{self.num_lent} lent {self._lent}, expected {dict(lent)}")

    def _charge(self, account: Account, count: int) -> None:
        if count == 0:
            return
        _add(self._accounts, account, count)
        self._changed[account] = None
        if account.home != self.instance:
            _add(self._lent, account.home, count)
            self.num_lent += count

    def _broken(self, what: str) -> InvariantError:
        return InvariantError(f"instance {self.instance}: {what}")


def _add(counts: dict[Key, int], key: Key, count: int) -> None:
    """Add to one count; a count of zero has no key."""
    total = counts.get(key, 0) + count
    if total:
        counts[key] = total
    else:
        del counts[key]
