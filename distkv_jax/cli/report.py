"""What `--stats` prints: totals, one line for each request, and the picture of the pools."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from distkv_jax.cli.picture import draw_legend, draw_pool, mark_of
from distkv_jax.engine.engine import EngineStats
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.llm import PoolView

MAX_REQUESTS = 20
"""Requests with a line of their own."""


def print_report(
    console: Console,
    stats: EngineStats,
    outputs: Sequence[RequestOutput],
    names: Mapping[str, str],
    peak: PoolView | None,
) -> None:
    """Print everything about a run.

    Args:
        console: Where to.
        stats: Totals of the engine that served nothing else.
        outputs: What it gave.
        names: What to call each request, in their order.
        peak: The pools when most blocks were held; None if none were seen.
    """
    console.print()
    console.print(totals_table(stats, outputs))
    console.print()
    console.print(requests_table(outputs))
    console.print()
    if peak is None:
        console.print("no step was slow enough to see its blocks held")
        return
    held = sum(usage.held for usage in peak.usage)
    total = sum(usage.total for usage in peak.usage)
    console.print(f"[bold]KV blocks[/] when most were held: {held:,} of {total:,}\n")
    console.print(draw_pool(peak, list(names), console.width), end="", no_wrap=True)
    listed = dict(itertools.islice(names.items(), MAX_REQUESTS))
    console.print(draw_legend(peak, listed, console.width), end="", no_wrap=True)
    if len(names) > MAX_REQUESTS:
        console.print(f"and {len(names) - MAX_REQUESTS:,} more requests")


def totals_table(stats: EngineStats, outputs: Sequence[RequestOutput]) -> Table:
    """Sum a run up."""
    metrics = [output.metrics for output in outputs]
    firsts = [
        one.first_token_time - one.arrival_time
        for one in metrics
        if one.first_token_time is not None
    ]
    # Not the time between requests: in a conversation that is the person's.
    seconds = stats.host_s + stats.wait_s
    table = _table("")
    table.add_column(justify="left")
    rate = f", {stats.num_generated_tokens / seconds:,.1f} per second" if seconds > 0 else ""
    first = (
        f"{statistics.median(firsts):.2f} s median, {max(firsts):.2f} s worst" if firsts else "none"
    )
    rows = {
        "prompt tokens": f"{stats.num_prompt_tokens:,}",
        "generated tokens": f"{stats.num_generated_tokens:,}{rate}",
        "time to first token": first,
        "steps": f"{stats.num_steps:,}, {stats.num_spanning_steps:,} with queries that travelled",
        "host time per step": f"{1000 * stats.host_s / max(1, stats.num_steps):.1f} ms",
        "preemptions": f"{stats.num_preemptions:,}, "
        f"{stats.num_fetched_tokens:,} tokens back from host memory",
        "blocks moved": f"{stats.moved.total:,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def requests_table(outputs: Sequence[RequestOutput]) -> Table:
    """List the requests by letter: tokens, ends, and how far each spread."""
    table = _table("request")
    for heading in ("prompt", "output", "first token"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for heading in ("instances", "remote KV"):
        table.add_column(heading, justify="right", no_wrap=True)
    for position, output in enumerate(outputs[:MAX_REQUESTS]):
        letter, style = mark_of(position)
        first = output.metrics.first_token_time
        table.add_row(
            f"[{style}] {letter} [/]",
            f"{len(output.prompt_token_ids):,}",
            f"{sum(len(sample.token_ids) for sample in output.outputs):,}",
            f"{first - output.metrics.arrival_time:.2f} s" if first is not None else "none",
            ", ".join(dict.fromkeys(str(sample.finish_reason) for sample in output.outputs)),
            f"{len(output.instances_used)}",
            f"{output.remote_kv_tokens:,}",
        )
    if len(outputs) > MAX_REQUESTS:
        table.add_row(f"and {len(outputs) - MAX_REQUESTS:,} more")
    return table


def _table(first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(first), header_style="bold")
    table.add_column(first, no_wrap=True)
    return table
