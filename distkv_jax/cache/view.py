"""What a planner is told: every instance's space and batch, every request's blocks."""

from collections.abc import Mapping
from typing import NamedTuple

from distkv_jax.cache.gmanager import GManager


class InstanceView(NamedTuple):
    """One instance.

    Attributes:
        num_free: Blocks nobody holds.
        num_lendable: Blocks it would lend.
        batch: Tokens its running sequences compute there in one decode step.
    """

    num_free: int
    num_lendable: int
    batch: int


class RequestView(NamedTuple):
    """What is charged to one home for one request.

    Attributes:
        request_id: The request.
        home: Whose debt it is where it is elsewhere.
        blocks: Blocks by instance, at least 1 each.
    """

    request_id: str
    home: int
    blocks: Mapping[int, int]


class View(NamedTuple):
    """The whole mesh, as gManager knows it."""

    instances: tuple[InstanceView, ...]
    requests: tuple[RequestView, ...]


def view_of(gmanager: GManager) -> View:
    """Read the ledger and the placement map."""
    rows = [gmanager.ledger.row(i) for i in range(gmanager.num_instances)]
    requests: dict[tuple[str, int], dict[int, int]] = {}
    for instance in range(gmanager.num_instances):
        for account, num_blocks in gmanager.placement.entries(instance).items():
            requests.setdefault(account, {})[instance] = num_blocks
    return View(
        tuple(InstanceView(row.num_free, row.num_lendable, row.batch) for row in rows),
        tuple(RequestView(*account, blocks) for account, blocks in requests.items()),
    )
