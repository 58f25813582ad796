"""What is shown of a server at one moment, and how it is read from an engine."""

import enum
import heapq
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from distkv_jax.cache.usage import Usage
from distkv_jax.cache.view import RequestView, view_of
from distkv_jax.engine.engine import Engine
from serve.dispatch import engine_name
from serve.keys import Caller
from serve.live.recent import Latency, Numbered

MAX_DEBTS = 128
"""The largest are told one by one; a large mesh may have thousands."""
MAX_REQUESTS = 256
"""Requests told one by one; the blocks of others are counted together."""


class Activity(enum.Enum):
    """What a request does."""

    WAITING = "waiting"  # it holds no block: queued, or preempted
    RUNNING = "running"


class Instance(NamedTuple):
    """One instance's blocks.

    Attributes:
        usage: By state.
        num_other: Of those held, blocks of requests that are not listed.
    """

    usage: Usage
    num_other: int


class Debt(NamedTuple):
    """Blocks that one instance holds for another's requests."""

    creditor: int
    debtor: int
    num_blocks: int


class RequestRow(NamedTuple):
    """A request under way.

    Attributes:
        number: How many came before it since the server started; a short name of its own.
        request_id: As its caller knows it.
        caller: Name behind the API key; empty where the server has no keys.
        activity: What it does.
        home: Instance charged for most of its blocks; None while it holds none.
        num_prompt_tokens: 0 until it is tokenised.
        num_tokens: Given so far, by all samples.
        age_s: Seconds since it came.
        blocks: Blocks by instance, at least 1 each.
    """

    number: int
    request_id: str
    caller: str
    activity: Activity
    home: int | None
    num_prompt_tokens: int
    num_tokens: int
    age_s: float
    blocks: Mapping[int, int]


class Totals(NamedTuple):
    """Counted since the engine started.

    Attributes:
        prompt_tokens: Of requests that were taken in.
        generated_tokens: Given out.
        num_steps: Steps of the device.
        num_spanning_steps: Of those, steps with queries that travelled.
        num_preemptions: Sequences whose blocks were taken for older ones.
        num_moved_blocks: Between instances.
        num_failed_steps: Whose sequences were prefilled again.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    num_steps: int = 0
    num_spanning_steps: int = 0
    num_preemptions: int = 0
    num_moved_blocks: int = 0
    num_failed_steps: int = 0


class Point(NamedTuple):
    """One moment of the curves.

    Attributes:
        time: Seconds since 1970.
        prompt_tokens_per_s: Taken in, over the seconds since the point before.
        generated_tokens_per_s: Given out, the same.
        num_running: Sequences that compute.
        num_waiting: Sequences in the queue.
        used: Part of all blocks that is not free, 0 to 1.
        first_token: From arrival to first token, lately; None where there was none.
        gap: Between two tokens of a sample, the same.
    """

    time: float
    prompt_tokens_per_s: float = 0.0
    generated_tokens_per_s: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    used: float = 0.0
    first_token: Latency | None = None
    gap: Latency | None = None


class Gauges(NamedTuple):
    """What the curves need of an engine; cheap to read."""

    totals: Totals
    num_running: int
    num_waiting: int
    used: float


class Reading(NamedTuple):
    """What a snapshot needs of an engine, read between two of its steps.

    Attributes:
        gauges: Its numbers.
        usage: Of each instance.
        lent: By each instance, blocks by debtor.
        requests: Blocks by request and home.
    """

    gauges: Gauges
    usage: tuple[Usage, ...]
    lent: tuple[Mapping[int, int], ...]
    requests: tuple[RequestView, ...]


class Snapshot(NamedTuple):
    """A server at one moment.

    Attributes:
        time: Seconds since 1970.
        model: As the server calls it.
        block_size: Tokens of a block.
        is_draining: Whether new requests are refused.
        instances: In their order.
        debts: The largest first, `MAX_DEBTS` at most.
        num_debts: How many there are.
        requests: In the order they came; those with blocks before others if there are too many.
        num_hidden: Requests that are not listed.
        now: The curves' last point.
        totals: Since the start.
    """

    time: float
    model: str
    block_size: int
    is_draining: bool
    instances: tuple[Instance, ...]
    debts: tuple[Debt, ...]
    num_debts: int
    requests: tuple[RequestRow, ...]
    num_hidden: int
    now: Point
    totals: Totals


def read_gauges(engine: Engine) -> Gauges:
    """Read an engine's numbers, on its thread."""
    stats, coordinator = engine.stats, engine.coordinator
    total = sum(rmanager.num_blocks for rmanager in coordinator.rmanagers)
    return Gauges(
        totals=Totals(
            prompt_tokens=stats.num_prompt_tokens,
            generated_tokens=stats.num_generated_tokens,
            num_steps=stats.num_steps,
            num_spanning_steps=stats.num_spanning_steps,
            num_preemptions=stats.num_preemptions,
            num_moved_blocks=stats.moved.total,
            num_failed_steps=stats.num_failed_steps,
        ),
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        used=1 - coordinator.num_free / total,
    )


def read_engine(engine: Engine) -> Reading:
    """Read an engine's numbers and where its blocks are, on its thread."""
    coordinator = engine.coordinator
    usage = tuple(coordinator.usage())
    ledger = coordinator.gmanager.ledger
    return Reading(
        gauges=read_gauges(engine),
        usage=usage,
        # A new heartbeat brings a new mapping, so these stay as they are.
        lent=tuple(ledger.row(instance).lent for instance in range(len(usage))),
        requests=view_of(coordinator.gmanager).requests,
    )


def snapshot_of(
    reading: Reading,
    requests: Iterable[Numbered],
    *,
    model: str,
    block_size: int,
    is_draining: bool,
    now: Point,
) -> Snapshot:
    """Join what the engine says of blocks with what is known of requests.

    Args:
        reading: Of the engine.
        requests: All that were under way when it was read, in the order they came.
        model: As the server calls it.
        block_size: Tokens of a block.
        is_draining: Whether new requests are refused.
        now: The curves' last point.
    """
    debts = [
        Debt(creditor, debtor, count)
        for creditor, lent in enumerate(reading.lent)
        for debtor, count in lent.items()
    ]
    charged: dict[str, dict[int, Mapping[int, int]]] = {}
    for view in reading.requests:
        charged.setdefault(view.request_id, {})[view.home] = view.blocks
    clock = time.monotonic()
    rows = [row_of(one, charged.get(name_of(one), {}), clock) for one in requests]
    shown = sorted(rows, key=lambda row: not row.blocks)[:MAX_REQUESTS]
    shown.sort(key=lambda row: row.number)
    return Snapshot(
        time=time.time(),
        model=model,
        block_size=block_size,
        is_draining=is_draining,
        instances=tuple(
            Instance(usage, usage.held - sum(row.blocks.get(index, 0) for row in shown))
            for index, usage in enumerate(reading.usage)
        ),
        debts=tuple(heapq.nsmallest(MAX_DEBTS, debts, key=order_of)),
        num_debts=len(debts),
        requests=tuple(shown),
        num_hidden=len(rows) - len(shown),
        now=now,
        totals=reading.gauges.totals,
    )


def order_of(debt: Debt) -> tuple[int, int, int]:
    """Sort the largest first."""
    return -debt.num_blocks, debt.creditor, debt.debtor


def name_of(one: Numbered) -> str:
    """Name a request as the engine does."""
    return engine_name(Caller(one.record.caller, is_admin=False), one.record.request_id)


def row_of(one: Numbered, charged: Mapping[int, Mapping[int, int]], clock: float) -> RequestRow:
    """Say what is shown of a request.

    Args:
        one: The request.
        charged: Its blocks by instance, by the home that is charged.
        clock: `time.monotonic()`.
    """
    blocks: dict[int, int] = {}
    for part in charged.values():
        for instance, count in part.items():
            blocks[instance] = blocks.get(instance, 0) + count
    record = one.record
    return RequestRow(
        number=one.number,
        request_id=record.request_id,
        caller=record.caller,
        activity=Activity.RUNNING if blocks else Activity.WAITING,
        home=max(charged, key=lambda home: sum(charged[home].values()), default=None),
        num_prompt_tokens=record.num_prompt_tokens,
        num_tokens=record.num_tokens,
        age_s=clock - record.arrival,
        blocks=blocks,
    )
