"""A planner that orders moves of any block anywhere."""

import random

from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.plan import Plan, PlannedMove
from distkv_jax.cache.view import View


class RandomPlanner:
    """Moves some blocks of every request from one instance to another."""

    def __init__(self, num_instances: int, seed: int = 0) -> None:
        self.num_instances = num_instances
        self.random = random.Random(seed)

    def plan(self, view: View) -> Plan:
        moves = []
        for request in view.requests:
            source, destination = self.random.sample(range(self.num_instances), 2)
            order = MoveKVCache(
                request_id=request.request_id,
                num_blocks=self.random.randint(1, 3),
                source=source,
                destination=destination,
            )
            moves.append(PlannedMove(order, request.home, gain_s=0.0, is_ahead=False))
        return Plan(tuple(moves), before_s=0.0, after_s=0.0, period=1)
