"""The debt ledger: what each instance has free, has lent and has borrowed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from distkv_jax.cache.messages import Heartbeat


class Row(NamedTuple):
    """What one instance said last.

    Attributes:
        number: Of the heartbeat it comes from; 0 and all zeros before the first.
        num_blocks: Blocks of its pool.
        num_free: Blocks nobody holds.
        num_lendable: Blocks it would lend.
        lent: Blocks lent, by debtor.
        num_reserved: Blocks kept for moves under way.
        batch: Tokens its running sequences compute there in one decode step.
    """

    number: int = 0
    num_blocks: int = 0
    num_free: int = 0
    num_lendable: int = 0
    lent: Mapping[int, int] = MappingProxyType({})
    num_reserved: int = 0
    batch: int = 0


class Ledger:
    """Keeps the newest totals of every instance.

    Soft state: any heartbeat has all of its sender's totals, so an empty ledger is whole again
    when each instance was heard once, and a lost one is made good by the next.
    """

    def __init__(self, num_instances: int) -> None:
        self._rows = [Row()] * num_instances

    def apply(self, heartbeat: Heartbeat) -> bool:
        """Take in a heartbeat, unless it is not newer than what is known.

        Returns:
            Whether it was newer.
        """
        if heartbeat.number <= self._rows[heartbeat.instance].number:
            return False
        self._rows[heartbeat.instance] = Row(
            number=heartbeat.number,
            num_blocks=heartbeat.num_blocks,
            num_free=heartbeat.num_free,
            num_lendable=heartbeat.num_lendable,
            lent={loan.debtor: loan.num_blocks for loan in heartbeat.loans},
            num_reserved=heartbeat.num_reserved,
            batch=heartbeat.batch,
        )
        return True

    def row(self, instance: int) -> Row:
        """Look up what an instance said last."""
        return self._rows[instance]

    def borrowed(self, debtor: int) -> dict[int, int]:
        """List the blocks an instance owes, by creditor."""
        return {
            creditor: row.lent[debtor]
            for creditor, row in enumerate(self._rows)
            if debtor in row.lent
        }
