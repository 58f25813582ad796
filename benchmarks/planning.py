"""How long the coordinator thinks at scale: planning moves, and finding debt circles.

    python -m benchmarks.planning --instances 1024 --requests 10000

Writes one JSON line for each of: reading the view, planning on it, finding debt circles.
"""

import argparse
import random
from collections.abc import Sequence

from benchmarks.measure import Record, measure
from distkv_jax.cache.dgfm import debt_circles
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.messages import Entry, Heartbeat, Loan
from distkv_jax.cache.performance import Profile, StepModel
from distkv_jax.cache.planner import Planner
from distkv_jax.cache.view import view_of

POOL_BLOCKS = 2048
BLOCK_SIZE = 64
PERIOD = 256


def make_gmanager(num_instances: int, num_requests: int, *, seed: int) -> GManager:
    """Hear of a skewed mesh: few requests of up to four pools among many short ones.

    A long request has a part of its blocks at home and the rest on a few other instances.
    """
    rng = random.Random(seed)
    free = [POOL_BLOCKS] * num_instances
    entries: list[list[Entry]] = [[] for _ in range(num_instances)]
    for index in range(num_requests):
        home = rng.randrange(num_instances)
        is_long = rng.random() < 0.02
        left = rng.randint(POOL_BLOCKS, 4 * POOL_BLOCKS) if is_long else rng.randint(1, 128)
        instances = [home, *rng.sample(range(num_instances), min(num_instances, 8))]
        for instance in dict.fromkeys(instances):
            count = min(left, free[instance] if is_long or instance == home else 0)
            if count:
                entries[instance].append(Entry(request_id=f"r{index}", home=home, num_blocks=count))
                free[instance] -= count
                left -= count
    gmanager = GManager(num_instances)
    for instance, here in enumerate(entries):
        lent: dict[int, int] = {}
        for entry in here:
            if entry.home != instance:
                lent[entry.home] = lent.get(entry.home, 0) + entry.num_blocks
        gmanager.receive(
            Heartbeat(
                instance=instance,
                number=1,
                is_full=True,
                num_free=free[instance],
                num_held=POOL_BLOCKS - free[instance],
                num_lendable=free[instance],
                loans=tuple(Loan(debtor=d, num_blocks=n) for d, n in sorted(lent.items())),
                entries=tuple(here),
                batch=sum(entry.home == instance for entry in here),
            )
        )
    return gmanager


def make_debts(num_instances: int, num_debts: int, *, seed: int) -> list[dict[int, int]]:
    """Draw random debts: far more circles than a real mesh has."""
    rng = random.Random(seed)
    lent: list[dict[int, int]] = [{} for _ in range(num_instances)]
    for _ in range(num_debts):
        creditor, debtor = rng.sample(range(num_instances), 2)
        lent[creditor][debtor] = rng.randint(1, 64)
    return lent


def run(
    num_instances: int, num_requests: int, *, limit: int, runs: int, seed: int
) -> dict[str, Record]:
    """Time every case, and say what the plan does."""
    gmanager = make_gmanager(num_instances, num_requests, seed=seed)
    planner = Planner(
        StepModel(Profile.linear()), block_size=BLOCK_SIZE, period=PERIOD, limit=limit
    )
    view = view_of(gmanager)
    plan = planner.plan(view)
    debts = make_debts(num_instances, num_requests, seed=seed)
    sizes = {
        "instances": num_instances,
        "requests": num_requests,
        "limit_blocks": limit,
        "moves": len(plan.moves),
        "moved_blocks": sum(order.num_blocks for order in plan.orders),
        "step_before_s": plan.before_s,
        "step_after_s": plan.after_s,
        "debts": sum(map(len, debts)),
        "circles": len(debt_circles(debts)),
        "seed": seed,
    }
    cases = {
        "planning/view": lambda: len(view_of(gmanager).requests),
        "planning/plan": lambda: len(planner.plan(view).moves),
        "planning/dgfm": lambda: len(debt_circles(debts)),
    }
    return measure(cases, sizes=sizes, runs=runs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--instances", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--limit", type=int, default=1_000_000, help="blocks a plan may move")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    records = run(
        given.instances, given.requests, limit=given.limit, runs=given.runs, seed=given.seed
    )
    for record in records.values():
        print(record.line())


if __name__ == "__main__":
    main()
