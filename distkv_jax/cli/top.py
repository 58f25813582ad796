"""`distkv top`: a server at work, in a terminal."""

import argparse
import collections
import contextlib
import math
import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distkv_jax.cache.usage import Usage
from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.picture import draw_pool, mark_of
from distkv_jax.llm import PoolView
from serve.client import Client, ClientSettings
from serve.proto.distkv.v1 import control_pb2 as pb

MAX_POINTS = 300
MAX_DEBTS = 12
MIN_REQUESTS = 4
BARS = "▁▂▃▄▅▆▇█"
CURVE_ROOM = 60
"""Columns beside a curve."""
MIN_CURVE, MAX_CURVE = 10, 60
GLUE = "\N{NO-BREAK SPACE}"


def run(args: argparse.Namespace) -> int:
    """Show pictures until interrupted; one only where nobody could see them change.

    Returns:
        0.

    Raises:
        DistKVError: What the server said, or it cannot be reached.
        OSError: A file cannot be read.
    """
    console = Console()
    points: collections.deque[pb.Point] = collections.deque(maxlen=MAX_POINTS)
    is_once = args.once or not console.is_terminal
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(**given_fields(args, ClientSettings)))
        snapshots = stack.enter_context(contextlib.closing(client.watch(args.interval)))
        if is_once:
            console.print(picture(next(snapshots), points, console.width, None))
            return 0
        # Its first picture may be an error, which must stay readable.
        first = next(snapshots)
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        # Ctrl-C is how one leaves, no failure.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        live.update(picture(first, points, console.width, console.height), refresh=True)
        for snapshot in snapshots:
            live.update(picture(snapshot, points, console.width, console.height), refresh=True)
    return 0


def picture(
    snapshot: pb.Snapshot,
    points: collections.deque[pb.Point],
    width: int,
    height: int | None,
) -> RenderableType:
    """Draw one moment.

    Args:
        snapshot: Of the server.
        points: Of the curves so far; those of the snapshot are added.
        width: Columns there are.
        height: Lines there are; None for any number.
    """
    points.extend(snapshot.history)
    view = pool_view(snapshot)
    requests = list(snapshot.requests)
    pools = draw_pool(view, [name_of(one) for one in requests], width)
    debts = debt_lines(snapshot, width)
    if height is not None:
        used = pools.plain.count("\n") + debts.plain.count("\n") + 14
        requests = requests[: max(MIN_REQUESTS, height - used)]
    parts: list[RenderableType] = [headline(snapshot), curves(snapshot.now, points, width), Text()]
    parts.append(pools)
    if debts:
        parts.append(debts)
    if requests:
        parts.append(requests_table(requests, width))
    num_hidden = len(snapshot.requests) + snapshot.num_hidden - len(requests)
    if num_hidden:
        parts.append(Text(f"and {num_hidden:,} more requests", "dim"))
    return Group(*parts)


def headline(snapshot: pb.Snapshot) -> Text:
    """Say what is served and how full it is."""
    total = sum(one.total for one in snapshot.instances)
    used = total - sum(one.free for one in snapshot.instances)
    totals = snapshot.totals
    line = Text.assemble(
        (snapshot.model, "bold"),
        f"  {len(snapshot.instances)} instances, {used:,} of {total:,} KV blocks used, "
        f"{sum(one.lent for one in snapshot.instances):,} lent",
    )
    if snapshot.is_draining:
        line.append("  draining", "bold yellow")
    line.append(
        f"\nsince the start: {totals.num_moved_blocks:,} blocks moved, "
        f"{totals.num_preemptions:,} preemptions, "
        f"{totals.num_spanning_steps:,} of {totals.num_steps:,} steps spanning\n"
    )
    return line


def curves(now: pb.Point, points: Iterable[pb.Point], width: int) -> Table:
    """Draw rates and latencies of the last minutes, each with its value now."""
    kept = list(points)
    room = min(MAX_CURVE, max(MIN_CURVE, width - CURVE_ROOM))
    table = Table.grid(padding=(0, 2))
    for name, value, numbers in (
        (
            "generated",
            f"{now.generated_tokens_per_s:,.0f} tokens/s",
            [point.generated_tokens_per_s for point in kept],
        ),
        (
            "prompts",
            f"{now.prompt_tokens_per_s:,.0f} tokens/s",
            [point.prompt_tokens_per_s for point in kept],
        ),
        (
            "sequences",
            f"{now.num_running:,} running, {now.num_waiting:,} waiting",
            [float(point.num_running + point.num_waiting) for point in kept],
        ),
        (
            "first token",
            latency(now.first_token) if now.HasField("first_token") else "none in the last 10 s",
            [point.first_token.median_s for point in kept],
        ),
        (
            "between tokens",
            latency(now.gap) if now.HasField("gap") else "none in the last 10 s",
            [point.gap.median_s for point in kept],
        ),
    ):
        table.add_row(Text(name, "dim"), Text(sparkline(numbers, room), "cyan"), value)
    return table


def latency(one: pb.Latency) -> str:
    """Write percentiles."""
    return f"median {one.median_s * 1e3:,.1f} ms, p99 {one.p99_s * 1e3:,.1f} ms"


def sparkline(numbers: Sequence[float], width: int) -> str:
    """Draw the last numbers as bars from 0 to the largest of them."""
    shown = list(numbers[-width:])
    largest = max(shown, default=0.0) or 1.0
    bars = [BARS[min(len(BARS) - 1, math.floor(one / largest * len(BARS)))] for one in shown]
    return "".join(bars).rjust(width)


def pool_view(snapshot: pb.Snapshot) -> PoolView:
    """Say where blocks are, by the names of `name_of`; those of others by no name."""
    usage = [
        Usage(
            total=one.total,
            free=one.free,
            held=one.held,
            lent=one.lent,
            borrowed=one.borrowed,
            reserved=one.reserved,
        )
        for one in snapshot.instances
    ]
    placement = {name_of(one): dict(one.blocks) for one in snapshot.requests}
    listed = [sum(blocks.get(at, 0) for blocks in placement.values()) for at in range(len(usage))]
    others = {at: one.held - listed[at] for at, one in enumerate(usage) if one.held > listed[at]}
    return PoolView(usage, placement | {"": others})


def name_of(request: pb.WatchedRequest) -> str:
    """Name a request uniquely: callers may use the same names."""
    return str(request.number)


def debt_lines(snapshot: pb.Snapshot, width: int) -> Text:
    """List who has lent whom how many blocks, the largest first."""
    debts = [
        (debt.num_blocks, one.instance, debt.debtor)
        for one in snapshot.instances
        for debt in one.debts
    ]
    debts.sort(key=lambda debt: (-debt[0], debt[1:]))
    words = [
        f"{creditor} -> {debtor}: {count:,} block{'s' * (count > 1)}"
        for count, creditor, debtor in debts[:MAX_DEBTS]
    ]
    if not words:
        return Text()
    if snapshot.num_debts > len(words):
        words.append(f"and {snapshot.num_debts - len(words):,} more")
    # Lines end between debts, not within one.
    glued = "  ".join(word.replace(" ", GLUE) for word in words)
    lines = textwrap.wrap(
        glued, width, initial_indent=f"lent{GLUE}{GLUE}", subsequent_indent=" " * 6
    )
    return Text("\n".join(lines).replace(GLUE, " ") + "\n")


def requests_table(requests: Sequence[pb.WatchedRequest], width: int) -> Table:
    """List requests, each with its letter in the picture."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", width=width)
    table.add_column("")
    table.add_column("request", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("prompt", "tokens", "blocks", "home", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for position, one in enumerate(requests):
        letter, style = mark_of(position)
        total = sum(one.blocks.values())
        caller = f"  {one.caller}" if one.caller else ""
        table.add_row(
            Text(letter, style),
            # What a name can do to a terminal its caller must not.
            Text("".join(char if char.isprintable() else "?" for char in one.request_id + caller)),
            f"{one.num_prompt_tokens:,}",
            f"{one.num_tokens:,}",
            f"{total:,} on {len(one.blocks)}" if total else "waiting",
            str(one.home) if one.HasField("home") else "",
            f"{one.age_s:,.1f} s",
        )
    return table
