"""`distkv bench serve`: measure any server under load, and print what its users would see."""

import argparse
import asyncio
import datetime
import json
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distkv_jax.cli.arguments import given_fields
from serve.bench.exchange import Outcome
from serve.bench.measure import Result, measure
from serve.bench.report import file_name, json_of, text_of
from serve.bench.settings import BenchSettings, read_goodput, read_metadata
from serve.client_settings import ClientSettings

INTERRUPTED = 130
MOST_ERRORS = 10


def run(args: argparse.Namespace) -> int:
    """Measure.

    Returns:
        0, or 1 if a request failed and `--allow-failures` was not given, or 130 if interrupted.

    Raises:
        DistKVError: The server cannot be reached, or a setting or dataset is wrong.
        OSError: A file cannot be read or written.
    """
    settings = BenchSettings(**given_fields(args, BenchSettings))
    connection = ClientSettings(server=settings.url, **given_fields(args, ClientSettings))
    goodput_ms, metadata = read_goodput(args.goodput), read_metadata(args.metadata)
    result = asyncio.run(measure_here(settings, connection, goodput_ms, is_quiet=args.quiet))
    tell(settings, result)
    if settings.save_result:
        date = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        about = {
            "date": date,
            "model_id": result.about.model,
            "server_version": result.about.version,
            "notes": result.notes,
        }
        found = json_of(settings, result.measured, result.figures, about=about, metadata=metadata)
        folder = Path(settings.result_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name(settings, result.about.model, date)
        path.write_text(json.dumps(found), encoding="utf-8")
        print(f"written: {path}", file=sys.stderr)
    if result.measured.is_partial:
        return INTERRUPTED
    return 1 if result.figures.failed and not settings.allow_failures else 0


async def measure_here(
    settings: BenchSettings,
    connection: ClientSettings,
    goodput_ms: dict[str, float],
    *,
    is_quiet: bool,
) -> Result:
    """Measure with a progress bar, to the end or to the first Ctrl-C."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    failed = TextColumn("{task.fields[failed]}")
    console = Console(stderr=True, quiet=is_quiet)
    bar = Progress(*columns, TimeElapsedColumn(), failed, console=console)
    requests = bar.add_task("requests", failed="")
    num_failed = 0

    def on_start(count: int) -> None:
        # Until here Ctrl-C ends the command: there is nothing to report.
        loop.add_signal_handler(signal.SIGINT, stop.set)
        bar.update(requests, total=count)
        bar.start()

    def on_end(outcome: Outcome) -> None:
        nonlocal num_failed
        num_failed += outcome.error is not None
        bar.update(requests, advance=1, failed=f"{num_failed} failed" if num_failed else "")

    try:
        return await measure(
            settings,
            connection,
            goodput_ms=goodput_ms,
            stop=stop,
            on_start=on_start,
            on_end=on_end,
        )
    finally:
        bar.stop()
        loop.remove_signal_handler(signal.SIGINT)


def tell(settings: BenchSettings, result: Result) -> None:
    """Print figures to standard output; failures and notes to standard error."""
    measured, figures = result.measured, result.figures
    if measured.is_partial:
        num_ended = len(measured.outcomes)
        print(
            f"PARTIAL: interrupted after {num_ended} requests had ended, "
            f"{measured.num_unfinished} were under way and count in nothing"
        )
    print(text_of(settings, measured, figures), flush=True)
    for text, count in list(figures.errors.items())[:MOST_ERRORS]:
        print(f"failed {count}: {text}", file=sys.stderr)
    if (num_more := len(figures.errors) - MOST_ERRORS) > 0:
        print(f"and {num_more} other errors: --save-result lists all", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
