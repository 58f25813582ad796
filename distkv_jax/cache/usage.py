"""How one instance's blocks are used."""

from typing import NamedTuple

from distkv_jax.cache.ledger import Ledger


class Usage(NamedTuple):
    """Blocks of one instance by state; total = free + held + reserved, and held includes lent.

    Attributes:
        total: Its pool.
        free: Held by nobody.
        held: Held by some sequence, here or elsewhere at home.
        lent: Of those, charged to other instances.
        borrowed: Blocks of other instances charged to this one.
        reserved: Kept for moves under way.
    """

    total: int
    free: int
    held: int
    lent: int
    borrowed: int
    reserved: int = 0


def usage_of(ledger: Ledger, instance: int) -> Usage:
    """Read one instance's blocks by state from the ledger."""
    row = ledger.row(instance)
    return Usage(
        total=row.num_blocks,
        free=row.num_free,
        held=row.num_blocks - row.num_free - row.num_reserved,
        lent=sum(row.lent.values()),
        borrowed=sum(ledger.borrowed(instance).values()),
        reserved=row.num_reserved,
    )
