"""Whether accounts, views and plans are true."""

from collections.abc import Iterable, Sequence

from distkv_jax.cache.block import Place
from distkv_jax.cache.charges import Holder
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import InvariantError


def is_heard(gmanager: GManager, rmanager: RManager) -> bool:
    """Tell whether `gmanager` has taken in all that `rmanager` ever said."""
    return gmanager.placement.heard(rmanager.instance) == rmanager.num_beats


def check_view(gmanager: GManager, rmanager: RManager) -> None:
    """Verify the ledger and the placement map of one instance, unless news are on the way.

    Raises:
        InvariantError: They differ from the accounts.
    """
    if rmanager.has_changed or not is_heard(gmanager, rmanager):
        return
    instance = rmanager.instance
    row = gmanager.ledger.row(instance)
    if row.number != rmanager.num_beats:
        raise InvariantError(
            f"ledger heard {row.number} of instance {instance}, expected {rmanager.num_beats}"
        )
    said = (row.num_blocks, row.num_free, row.num_reserved, row.num_lendable, dict(row.lent))
    expected = (
        rmanager.num_blocks,
        rmanager.num_free,
        rmanager.num_reserved,
        rmanager.num_lendable,
        dict(rmanager.lent),
    )
    if said != expected:
        raise InvariantError(
            f"ledger says (total, free, reserved, lendable, lent) {said} of instance {instance}, "
            f"expected {expected}"
        )
    placed, accounts = gmanager.placement.entries(instance), rmanager.accounts()
    if placed != accounts:
        raise InvariantError(
            f"placement map has {sum(placed.values())} blocks of instance {instance} "
            f"for {len(placed)} accounts, expected {sum(accounts.values())} for {len(accounts)}"
        )


def check_holders(rmanagers: Sequence[RManager], opened: Iterable[Holder]) -> None:
    """Verify every rManager's accounts, and that only opened sequences hold blocks.

    Raises:
        InvariantError: One is broken; says where, with numbers.
    """
    holders = set(opened)
    for rmanager in rmanagers:
        rmanager.check()
        for holder in rmanager.holders:
            if holder not in holders:
                raise InvariantError(
                    f"sequence {holder.sequence} holds blocks of instance "
                    f"{rmanager.instance} and is not open"
                )


def check_hosts(gmanager: GManager, pools: Iterable[HostPool], live: Iterable[int]) -> None:
    """Verify pools of host memory and what is known of them, and that only live saves hold blocks.

    Raises:
        InvariantError: One is broken; says where, with numbers.
    """
    known = set(live)
    for pool in pools:
        pool.check()
        check_view(gmanager, pool.rmanager)
        if pool.saves - known:
            raise InvariantError(
                f"host memory of instance {pool.rmanager.instance} holds blocks of saves "
                f"{sorted(pool.saves - known)}, which nobody knows"
            )


def check_named(rmanager: RManager, holder: Holder, place: Place, epoch: int) -> None:
    """Verify that a sequence holds a block that a plan names, in the epoch it is named in.

    Raises:
        InvariantError: It does not, or the block has changed hands.
    """
    if not rmanager.holds(holder, place.index):
        raise InvariantError(f"plan names {place}, which sequence {holder.sequence} does not hold")
    if rmanager.epoch(place.index) != epoch:
        raise InvariantError(
            f"plan names {place} of epoch {epoch}, it is {rmanager.epoch(place.index)}"
        )
