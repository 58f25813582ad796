"""What moves: what gManager orders, debt in circles, and loans that a creditor needs back."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from distkv_jax.cache.block import Place
from distkv_jax.cache.charges import Account
from distkv_jax.cache.dgfm import debt_circles
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.mover import Mover, Transfer

ANY_REQUEST = ""
"""What a reservation for blocks of several requests is for."""


def ordered(mover: Mover, orders: Iterable[MoveKVCache], limit: int) -> Iterator[Transfer]:
    """Plan moves as ordered, oldest blocks first, up to `limit`; a refused one is left out."""
    for order in orders:
        for home in mover.homes(order.source, order.request_id):
            count = min(order.num_blocks, limit)
            found = mover.candidates(order.source, home, order.request_id)
            places = list(islice(found, max(count, 0)))
            moved = _send(mover, places, order.destination, Account(order.request_id, home))
            limit -= len(moved)
            order = _less(order, len(moved))
            yield from moved


def circles(mover: Mover, gmanager: GManager, limit: int) -> Iterator[Transfer]:
    """Plan exchanges that call home what instances lent each other in circles.

    Needs no free block anywhere: each block takes the place of the next one in its circle.
    """
    lent = [gmanager.ledger.row(i).lent for i in range(gmanager.num_instances)]
    found = {
        (creditor, debtor): list(mover.candidates(creditor, debtor))
        for circle in debt_circles(lent)
        for creditor, debtor in _edges(circle.instances)
    }
    # The ledger may be old, and not every block may move: only what may is a debt here.
    movable: list[dict[int, int]] = [{} for _ in lent]
    for (creditor, debtor), places in found.items():
        if places:
            movable[creditor][debtor] = len(places)
        places.reverse()
    for circle in debt_circles(movable):
        length = len(circle.instances)
        for _ in range(min(circle.num_blocks, limit // length)):
            places = [found[edge].pop() for edge in _edges(circle.instances)]
            limit -= length
            yield from mover.transfer(places, None)


def recalled(
    mover: Mover, gmanager: GManager, creditor: int, count: int, limit: int
) -> Iterator[Transfer]:
    """Plan to free `count` blocks of a creditor by sending lent ones away.

    They go to their debtor where it has free blocks. Where it has none but lent some itself, one
    of those makes room, and so on along the shortest way to an instance with a free block. What
    is left goes to other creditors.
    """
    spare = [gmanager.ledger.row(i).num_free for i in range(gmanager.num_instances)]
    spare[creditor] = 0
    while count > 0:
        path = _path_home(gmanager, mover, creditor, spare)
        if path is None or len(path) > limit + 1:
            break
        *vacated, last = path
        lines = [
            list(islice(mover.candidates(here, debtor), count))
            for here, debtor in zip(path, path[1:], strict=False)
        ]
        amount = min(count, spare[last], limit // len(vacated), *map(len, lines))
        kept = mover.reserve(last, Account(ANY_REQUEST, last), amount)
        if kept is None:
            # It has less than the ledger says: not again in this plan.
            spare[last] = 0
            continue
        for index, places in enumerate(zip(*(line[:amount] for line in lines), strict=True)):
            yield from mover.transfer(places, kept, index)
        spare[last] -= amount
        count -= amount
        limit -= amount * len(vacated)
    for debtor in tuple(gmanager.ledger.row(creditor).lent):
        for other in gmanager.propose_creditors(debtor, count):
            lendable = min(gmanager.ledger.row(other).num_lendable, spare[other])
            places = list(
                islice(mover.candidates(creditor, debtor), max(0, min(count, limit, lendable)))
            )
            moved = _send(mover, places, other, Account(ANY_REQUEST, debtor))
            spare[other] -= len(moved)
            count -= len(moved)
            limit -= len(moved)
            yield from moved


def _send(
    mover: Mover, places: Sequence[Place], destination: int, account: Account
) -> list[Transfer]:
    """Plan to move blocks to an instance: all, or none where it refuses."""
    kept = mover.reserve(destination, account, len(places)) if places else None
    if kept is None:
        return []
    return [
        transfer
        for index, place in enumerate(places)
        for transfer in mover.transfer([place], kept, index)
    ]


def _path_home(
    gmanager: GManager, mover: Mover, creditor: int, spare: Sequence[int]
) -> list[int] | None:
    """Find the shortest way from a creditor over debtors to an instance with a free block."""
    came_from = {creditor: creditor}
    queue = deque([creditor])
    while queue:
        here = queue.popleft()
        for debtor in gmanager.ledger.row(here).lent:
            if debtor in came_from or next(mover.candidates(here, debtor), None) is None:
                continue
            came_from[debtor] = here
            if spare[debtor]:
                path = [debtor]
                while path[-1] != creditor:
                    path.append(came_from[path[-1]])
                return path[::-1]
            queue.append(debtor)
    return None


def _edges(instances: Sequence[int]) -> Iterator[tuple[int, int]]:
    """List each (creditor, debtor) of a circle."""
    return zip(instances, [*instances[1:], instances[0]], strict=True)


def _less(order: MoveKVCache, count: int) -> MoveKVCache:
    return MoveKVCache(
        request_id=order.request_id,
        num_blocks=order.num_blocks - count,
        source=order.source,
        destination=order.destination,
    )
