"""The destination's side of a move: reserve, then let the data come, or let the blocks go."""

from distkv_jax.cache.messages import (
    BlockEpoch,
    Commit,
    Committed,
    Granted,
    Refused,
    Release,
    Released,
    Reply,
    Request,
    TryMoveKVCache,
)
from distkv_jax.cache.reservations import Reservation
from distkv_jax.cache.rmanager import RManager

HAS_ENDED = "the reservation has ended"


def answer(rmanager: RManager, request: Request) -> Reply:
    """Do what a debtor asks of an instance; the same request twice has the effect of one.

    Requests come in any order: what is asked of a reservation after its end is refused, and a
    release ends it before it begins.

    Source: Infinite-LLM, `try_move_kvcache`, <https://arxiv.org/abs/2401.02669>. Leases, and
    names for reservations, are ours: the paper does not say what becomes of a lost message.
    """
    match request:
        case TryMoveKVCache():
            return _try_move(rmanager, request)
        case Commit():
            return _commit(rmanager, request)
        case Release():
            return _release(rmanager, request)


def _try_move(rmanager: RManager, request: TryMoveKVCache) -> Granted | Refused:
    """Reserve, first come first served: all blocks asked for, or none."""
    name, reservations = request.reservation, rmanager.reservations
    live = reservations.live(name)
    if live is not None:
        return _granted(rmanager, request, live.blocks)
    if reservations.is_ended(name) or request.until < reservations.step:
        return _refused(rmanager, request, HAS_ENDED)
    lendable = rmanager.lendable(request.home)
    if not 1 <= request.num_blocks <= lendable:
        reason = (
            f"instance {rmanager.instance} has {lendable} blocks for instance {request.home}, "
            f"{request.num_blocks} wanted"
        )
        return _refused(rmanager, request, reason)
    wanted = Reservation(request.request_id, request.home, request.num_blocks, request.until)
    return _granted(rmanager, request, rmanager.reserve(name, wanted))


def _commit(rmanager: RManager, request: Commit) -> Committed | Refused:
    """Let the data of a reservation come, unless it has ended."""
    name, reservations = request.reservation, rmanager.reservations
    live = reservations.live(name)
    if live is None:
        if reservations.is_committed(name):
            return Committed(reservation=name)
        return _refused(rmanager, request, HAS_ENDED)
    lines = {arrival.block: arrival.holders for arrival in request.arrivals}
    rest = [block for block in live.blocks if block not in lines]
    homes = {line[0].account.home for line in lines.values()}
    if len(rest) + len(lines) != live.num_blocks or not homes <= {live.home}:
        return _refused(rmanager, request, "not what was reserved")
    reservations.end(name, until=live.until, is_committed=True)
    rmanager.adopt(lines)
    for block in lines:
        reservations.arrived[block] = BlockEpoch(block, rmanager.epoch(block)), name
    rmanager.drop(rest)
    return Committed(reservation=name)


def _release(rmanager: RManager, request: Release) -> Released:
    """End a reservation, and undo its commit, which the debtor then never heard of."""
    name = request.reservation
    live = rmanager.reservations.end(name, until=request.until, is_committed=False)
    if live is not None:
        rmanager.drop(live.blocks)
    for block in request.blocks:
        here = BlockEpoch(block, rmanager.epoch(block))
        if rmanager.reservations.arrived.get(block) == (here, name):
            for holder in rmanager.line(block):
                rmanager.release(holder, [block])
    return Released(reservation=name)


def _granted(rmanager: RManager, request: TryMoveKVCache, blocks: tuple[int, ...]) -> Granted:
    named = tuple(BlockEpoch(block, rmanager.epoch(block)) for block in blocks)
    return Granted(reservation=request.reservation, blocks=named)


def _refused(rmanager: RManager, request: TryMoveKVCache | Commit, reason: str) -> Refused:
    return Refused(reservation=request.reservation, reason=reason, num_free=rmanager.num_free)
