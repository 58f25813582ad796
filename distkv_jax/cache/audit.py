"""Whether what gManager believes is what an rManager accounts for."""

from distkv_jax.cache.gmanager import GManager
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
