"""What rManagers and gManager say to each other, as plain frozen values."""

import dataclasses


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
    """

    instance: int
    number: int
    is_full: bool
    num_free: int
    num_held: int
    num_lendable: int
    loans: tuple[Loan, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def num_blocks(self) -> int:
        """Blocks of the sender's pool."""
        return self.num_free + self.num_held

    @property
    def num_lent(self) -> int:
        """Blocks charged to other instances."""
        return sum(loan.num_blocks for loan in self.loans)
