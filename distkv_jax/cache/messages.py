"""What rManagers and gManager say to each other, as plain frozen values."""

import dataclasses
from typing import NamedTuple, TypeAlias

from distkv_jax.cache.charges import Holder


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """How many blocks of one instance are charged to one request.

    Attributes:
        request_id: The request.
        home: Instance whose debt they are; another one than the sender's means a loan.
        num_blocks: All such blocks, not the difference; 0 when the last one went.
    """

    request_id: str
    home: int
    num_blocks: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loan:
    """How many blocks of one instance are charged to all requests of another.

    Attributes:
        debtor: Home of those requests.
        num_blocks: At least 1.
    """

    debtor: int
    num_blocks: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What an rManager tells gManager: totals always, entries only where they changed.

    All numbers are absolute, so that hearing a heartbeat twice changes nothing.

    Attributes:
        instance: Who sends it.
        number: 1 for an instance's first heartbeat, one more for each later one.
        is_full: `entries` are all there are, not only those changed since `number - 1`.
        num_free: Blocks nobody holds.
        num_held: Blocks somebody holds, lent ones too.
        num_lendable: Blocks that the sender would lend now.
        loans: Blocks lent, by debtor, ascending.
        entries: Requests charged here.
        num_reserved: Blocks kept for moves under way.
        batch: Tokens that the sender's running sequences compute there in one decode step.
    """

    instance: int
    number: int
    is_full: bool
    num_free: int
    num_held: int
    num_lendable: int
    loans: tuple[Loan, ...] = ()
    entries: tuple[Entry, ...] = ()
    num_reserved: int = 0
    batch: int = 0

    @property
    def num_blocks(self) -> int:
        """Blocks of the sender's pool."""
        return self.num_free + self.num_held + self.num_reserved

    @property
    def num_lent(self) -> int:
        """Blocks charged to other instances."""
        return sum(loan.num_blocks for loan in self.loans)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MoveKVCache:
    """What gManager asks a debtor to do; the debtor asks the destination, which may refuse.

    Attributes:
        request_id: Whose blocks.
        num_blocks: How many to move at most, at least 1.
        source: Instance that has them.
        destination: Instance that shall have them.
    """

    request_id: str
    num_blocks: int
    source: int
    destination: int


class ReservationId(NamedTuple):
    """Names one reservation for ever: the same message twice has the effect of one.

    Attributes:
        requester: Home of the sequences whose blocks shall move.
        number: Counts the requester's reservations.
    """

    requester: int
    number: int


class BlockEpoch(NamedTuple):
    """A block between two changes of hands.

    Attributes:
        block: Its index in the pool of the instance spoken to.
        epoch: How often it had changed hands.
    """

    block: int
    epoch: int


class Arrival(NamedTuple):
    """Who holds a block from now on.

    Attributes:
        block: Index in the pool of the instance spoken to.
        holders: Who holds it, the one that is charged first.
    """

    block: int
    holders: tuple[Holder, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TryMoveKVCache:
    """Debtor to destination: keep blocks for a move. Answered by `Granted` or `Refused`.

    Attributes:
        reservation: Its name.
        request_id: Whose blocks shall come.
        home: Instance that they will be charged to.
        num_blocks: All of these, or none.
        until: Last step at which the reservation holds: its lease.
    """

    reservation: ReservationId
    request_id: str
    home: int
    num_blocks: int
    until: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """Debtor to destination: the data come now. Answered by `Committed` or `Refused`.

    Attributes:
        reservation: Its name.
        arrivals: Blocks of it that are held from now on; its others are free again.
    """

    reservation: ReservationId
    arrivals: tuple[Arrival, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """Debtor to destination: no data come. Always answered by `Released`.

    Attributes:
        reservation: Its name; it may have ended or never begun.
        until: Its lease.
        blocks: What a `Commit` named whose answer was lost: where it arrived, it is undone.
    """

    reservation: ReservationId
    until: int
    blocks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """The blocks that are kept until the lease ends."""

    reservation: ReservationId
    blocks: tuple[BlockEpoch, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """The blocks of a `Commit` are held."""

    reservation: ReservationId


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """Nothing is kept any more."""

    reservation: ReservationId


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Nothing was done.

    Attributes:
        reservation: Its name.
        reason: Why, for people.
        num_free: Blocks that could be had instead.
    """

    reservation: ReservationId
    reason: str
    num_free: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A host to the leader: all blocks of a save are in host memory, until they are forgotten.

    Attributes:
        instance: Whose blocks.
        save_id: Which save.
    """

    instance: int
    save_id: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NotSaved:
    """A host to the leader: no block of a save was kept.

    Attributes:
        instance: Whose blocks.
        save_id: Which save.
        num_free: Blocks of host memory that could be had instead.
    """

    instance: int
    save_id: int
    num_free: int


FromHost: TypeAlias = Heartbeat | Saved | NotSaved
"""What the rManager of an instance's host memory tells the leader."""

Request: TypeAlias = TryMoveKVCache | Commit | Release
"""What a debtor asks of a destination."""

Reply: TypeAlias = Granted | Committed | Released | Refused
"""What it hears."""
