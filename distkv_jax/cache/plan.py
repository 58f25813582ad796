"""What a planner proposes, and how it explains itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.view import RequestView


class PlannedMove(NamedTuple):
    """A move and what it is good for.

    Attributes:
        order: What is to be moved.
        home: Instance that the blocks are charged to.
        gain_s: Its share of the seconds that the plan saves in a period, copying paid.
        is_ahead: Whether the source would have run out of blocks within the period.
    """

    order: MoveKVCache
    home: int
    gain_s: float
    is_ahead: bool

    def __str__(self) -> str:
        order = self.order
        what = f"{order.num_blocks} blocks of request {order.request_id}"
        if order.destination == self.home:
            text = f"instance {order.source} gives {what} back to instance {self.home}"
        elif order.source == self.home:
            text = f"instance {order.destination} lends {what} to instance {self.home}"
        else:
            text = (
                f"instance {order.destination} lends {what} to instance {self.home}, "
                f"in place of instance {order.source}"
            )
        why = ", before it runs out" if self.is_ahead else ""
        return f"{text}{why}: gain {self.gain_s * 1e3:.3g} ms"


class Plan(NamedTuple):
    """What should move, and why.

    Attributes:
        moves: Those of instances that would run out first, then by gain.
        before_s: Predicted seconds of a step as it is.
        after_s: Predicted seconds of a step when all is moved.
        period: Steps in which a move has to repay its copy.
    """

    moves: tuple[PlannedMove, ...]
    before_s: float
    after_s: float
    period: int

    @property
    def orders(self) -> tuple[MoveKVCache, ...]:
        """What the coordinator is asked to do."""
        return tuple(move.order for move in self.moves)

    def lines(self) -> list[str]:
        """Explain the plan: a line of predictions, then one for each move."""
        head = f"step {self.before_s * 1e3:.4g} ms, {self.after_s * 1e3:.4g} ms as planned"
        return [f"{head}; gains in {self.period} steps", *map(str, self.moves)]


def net_moves(
    requests: Sequence[RequestView], wanted: Sequence[Mapping[int, int]]
) -> Iterator[tuple[RequestView, MoveKVCache]]:
    """List what to move so that requests have the blocks by instance that are wanted."""
    for request, after in zip(requests, wanted, strict=True):
        if after == request.blocks:
            continue
        changes = {
            instance: after.get(instance, 0) - request.blocks.get(instance, 0)
            for instance in sorted({*after, *request.blocks})
        }
        destinations = [[i, change] for i, change in changes.items() if change > 0]
        for source, change in changes.items():
            while change < 0:
                destination, room = destinations[-1]
                count = min(-change, room)
                change += count
                destinations[-1][1] -= count
                if count == room:
                    destinations.pop()
                yield (
                    request,
                    MoveKVCache(
                        request_id=request.request_id,
                        num_blocks=count,
                        source=source,
                        destination=destination,
                    ),
                )
