"""The engine's own numbers as metrics: read between two steps, written out elsewhere."""

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from distkv_jax.cache.usage import Usage
from distkv_jax.engine.engine import Engine

INSTANCE = "kv_instance"
"""Not `instance`: Prometheus calls the scraped server so, and would rename ours."""
MAX_DEBTS = 1024
"""Debts told one by one, the largest: among n instances there may be n * (n - 1)."""


class EngineReading(NamedTuple):
    """An engine's numbers at one moment.

    Attributes:
        usage: Blocks of each instance.
        host_usage: Blocks of each instance's host memory.
        debts: Creditor, debtor and blocks, the largest first.
        num_running: Sequences that hold a slot.
        num_waiting: Sequences in the queue.
        totals: Counts since the engine started, by name of the metric.
        moved: Blocks moved since then, by reason.
    """

    usage: tuple[Usage, ...]
    host_usage: tuple[Usage, ...]
    debts: tuple[tuple[int, int, int], ...]
    num_running: int
    num_waiting: int
    totals: dict[str, float]
    moved: dict[str, int]


TOTALS = {
    "prompt_tokens": "Prompt tokens of requests that were taken in",
    "generation_tokens": "Tokens generated",
    "computed_tokens": "Tokens computed, recomputed ones included",
    "num_preemptions": "Sequences whose blocks were taken for older ones",
    "fetched_tokens": "Tokens of theirs that came back from host memory",
    "steps": "Steps dispatched",
    "spanning_steps": "Of those, steps whose queries travelled to other instances",
    "failed_steps": "Steps that raised, after which their sequences were prefilled again",
    "host_seconds": "Seconds the host spent planning, encoding, dispatching and collecting",
    "coordinator_seconds": "Of host_seconds, on deciding what moves and on heartbeats",
    "device_wait_seconds": "Seconds the host waited for the devices",
}


def read_engine(engine: Engine) -> EngineReading:
    """Read an engine's numbers, on its thread."""
    stats, usage = engine.stats, tuple(engine.coordinator.usage())
    ledger = engine.coordinator.gmanager.ledger
    debts = [
        (creditor, debtor, count)
        for creditor in range(len(usage))
        for debtor, count in ledger.row(creditor).lent.items()
    ]
    debts.sort(key=lambda debt: (-debt[2], debt))
    return EngineReading(
        usage=usage,
        host_usage=tuple(engine.host_usage()),
        debts=tuple(debts[:MAX_DEBTS]),
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        totals={
            "prompt_tokens": stats.num_prompt_tokens,
            "generation_tokens": stats.num_generated_tokens,
            "computed_tokens": stats.num_computed_tokens,
            "num_preemptions": stats.num_preemptions,
            "fetched_tokens": stats.num_fetched_tokens,
            "steps": stats.num_steps,
            "spanning_steps": stats.num_spanning_steps,
            "failed_steps": stats.num_failed_steps,
            "host_seconds": stats.host_s,
            "coordinator_seconds": stats.coordinator_s,
            "device_wait_seconds": stats.wait_s,
        },
        moved=stats.moved._asdict(),
    )


def engine_families(reading: EngineReading | None) -> Iterator[Metric]:
    """Write a reading as metrics; without one, that there is none."""
    yield gauge(
        "engine_up", "1 if the engine answered in time, else 0", 0 if reading is None else 1
    )
    if reading is None:
        return
    usage = reading.usage
    total, held = sum(one.total for one in usage), sum(one.held for one in usage)
    free, lent = sum(one.free for one in usage), sum(one.lent for one in usage)
    yield gauge("num_requests_running", "Sequences that hold a slot", reading.num_running)
    yield gauge("num_requests_waiting", "Sequences in the queue", reading.num_waiting)
    yield gauge(
        "kv_cache_usage_perc", "Part of all blocks that is not free, 0 to 1", 1 - free / total
    )
    yield gauge(
        "remote_kv_fraction",
        "Part of the held blocks that is away from its home, 0 to 1",
        lent / held if held else 0.0,
    )
    yield from pool_families(reading)
    for name, text in TOTALS.items():
        yield CounterMetricFamily(f"distkv_{name}", text, value=reading.totals[name])
    moved = CounterMetricFamily(
        "distkv_moved_blocks", "Blocks moved between instances", labels=["reason"]
    )
    for reason, count in reading.moved.items():
        moved.add_metric([reason], count)
    yield moved


def pool_families(reading: EngineReading) -> Iterator[Metric]:
    """Write where the blocks are, and who owes whom."""
    blocks = GaugeMetricFamily(
        "distkv_blocks", "Blocks of an instance by state", labels=[INSTANCE, "state"]
    )
    lent = GaugeMetricFamily(
        "distkv_lent_blocks", "Held blocks charged to other instances", labels=[INSTANCE]
    )
    borrowed = GaugeMetricFamily(
        "distkv_borrowed_blocks", "Blocks of other instances charged to it", labels=[INSTANCE]
    )
    for instance, usage in enumerate(reading.usage):
        for state in ("free", "held", "reserved"):
            blocks.add_metric([str(instance), state], getattr(usage, state))
        lent.add_metric([str(instance)], usage.lent)
        borrowed.add_metric([str(instance)], usage.borrowed)
    debts = GaugeMetricFamily(
        "distkv_debt_blocks",
        "Blocks that one instance holds for requests of another; pairs without debt are left out",
        labels=["creditor", "debtor"],
    )
    for creditor, debtor, count in reading.debts:
        debts.add_metric([str(creditor), str(debtor)], count)
    hosts = GaugeMetricFamily(
        "distkv_host_blocks",
        "Blocks of an instance's host memory by state",
        labels=[INSTANCE, "state"],
    )
    for instance, usage in enumerate(reading.host_usage):
        hosts.add_metric([str(instance), "free"], usage.free)
        hosts.add_metric([str(instance), "held"], usage.held)
    yield from (blocks, lent, borrowed, debts, hosts)


def gauge(name: str, text: str, value: float) -> Metric:
    """Write one number."""
    return GaugeMetricFamily(f"distkv_{name}", text, value=value)
