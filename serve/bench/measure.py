"""One measurement from its settings: ask the server, make the requests, warm up, send, count."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from distkv_jax.errors import ConfigError
from serve.bench.arrivals import arrivals
from serve.bench.backend import About, Backend
from serve.bench.datasets import make_workload
from serve.bench.exchange import Outcome, exchange
from serve.bench.figures import Figures, work_out
from serve.bench.load import Load, Measured
from serve.bench.settings import BenchSettings
from serve.bench.vocabulary import Vocabulary, read_tokenizer
from serve.bench.workload import Item
from serve.client_settings import ClientSettings

LARGE_LAG_S = 0.1


class Result(NamedTuple):
    """What there is to report.

    Attributes:
        about: The server.
        measured: What was sent and came.
        figures: Worked out of it.
        notes: What a reader should know, in sentences.
    """

    about: About
    measured: Measured
    figures: Figures
    notes: list[str]


async def measure(
    settings: BenchSettings,
    connection: ClientSettings,
    *,
    goodput_ms: Mapping[str, float],
    stop: asyncio.Event,
    on_start: Callable[[int], None] = lambda count: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> Result:
    """Measure a server.

    Args:
        settings: What and how.
        connection: Keys and certificates.
        goodput_ms: Limits within which a request counts as good.
        stop: Ends the measurement early when set; what is there is reported.
        on_start: Called with the number of requests before the first is sent.
        on_end: Called with each outcome.

    Raises:
        DistKVError: The server cannot be reached, or a setting or dataset is wrong.
        OSError: A file cannot be read.
    """
    backend = open_backend(settings, connection)
    try:
        about = await backend.about()
        # Making prompts takes seconds; Ctrl-C must be heard meanwhile.
        workload = await asyncio.to_thread(
            lambda: make_workload(settings, vocabulary_of(settings, about))
        )
        times = times_of(settings, workload.items)
        load = Load(
            backend,
            about.model,
            workload.items,
            times,
            max_concurrency=settings.max_concurrency,
            on_end=on_end,
        )
        first = workload.items[0]
        for _ in range(settings.num_warmups):
            request = backend.prepare(first, about.model)
            outcome = await exchange(backend, request, first.prompt_tokens)
            if outcome.error is not None:
                raise ConfigError(f"the warm-up request failed: {outcome.error}")
        on_start(len(workload.items))
        measured = await load.run(stop)
    finally:
        await backend.close()
    figures = work_out(
        measured.outcomes,
        measured.duration_s,
        percentiles=settings.percentiles,
        goodput_ms=goodput_ms,
    )
    notes = [*workload.notes, *notes_on(measured, figures)]
    return Result(about, measured, figures, notes)


def open_backend(settings: BenchSettings, connection: ClientSettings) -> Backend:
    """Make the backend that the settings name.

    Raises:
        ConfigError: It needs a package that is not installed, or a setting cannot be.
        OSError: A file of keys or certificates cannot be read.
    """
    if settings.backend == "grpc":
        from serve.bench.grpc_backend import GrpcBackend

        return GrpcBackend(settings, connection)
    try:
        from serve.bench.openai_backend import OpenAIBackend
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ConfigError(
            f"backend {settings.backend} needs aiohttp: pip install 'distkv-jax[bench]'"
        ) from error
    return OpenAIBackend(settings, connection)


def vocabulary_of(settings: BenchSettings, about: About) -> Vocabulary:
    """Find what prompts can be made of.

    Raises:
        ConfigError: Nobody says how many token ids there are, or the tokenizer cannot be read.
    """
    tokenizer = None if settings.tokenizer is None else read_tokenizer(settings.tokenizer)
    size = settings.vocab_size
    if size is None and tokenizer is not None:
        size = tokenizer.get_vocab_size(with_added_tokens=False)
    size = about.vocab_size if size is None else size
    if size is None:
        raise ConfigError(
            "the server does not say how many token ids its model has: give --vocab-size, or "
            "--tokenizer"
        )
    return Vocabulary(size, tokenizer)


def times_of(settings: BenchSettings, items: list[Item]) -> list[float]:
    """Say when each request is sent: as the trace has it, else as drawn."""
    if settings.replays:
        # Checked by the readers: every request of a trace has its time.
        return [item.arrival_s or 0.0 for item in items]
    return arrivals(len(items), settings.rate, burstiness=settings.burstiness, seed=settings.seed)


def notes_on(measured: Measured, figures: Figures) -> list[str]:
    """Say what weakens the figures."""
    notes = []
    if figures.num_without_usage:
        notes.append(
            f"{figures.num_without_usage} answers came without usage: their output tokens are "
            "counted by pieces, their prompt tokens by the client"
        )
    if measured.lag.loop_s > LARGE_LAG_S:
        notes.append(
            f"the client was up to {measured.lag.loop_s * 1000:.0f} ms late for its own timers: "
            "it may be what limits the figures"
        )
    return notes
