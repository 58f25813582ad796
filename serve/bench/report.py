"""The text and the JSON of a run, as `vllm bench serve` writes them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from serve.bench.exchange import Outcome
from serve.bench.figures import Figures
from serve.bench.load import Measured
from serve.bench.settings import BenchSettings

WIDTH = 50
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": (
        "E2EL incl. Client Queue",
        "Queue-inclusive End-to-end Latency",
    ),
}


def text_of(settings: BenchSettings, measured: Measured, figures: Figures) -> str:
    """Write the block of text; its last section is ours."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]

    def add(label: str, value: float) -> None:
        shown = f"{value:.2f}" if isinstance(value, float) else f"{value}"
        lines.append(f"{label:<40} {shown:<10}")

    add("Successful requests:", figures.completed)
    add("Failed requests:", figures.failed)
    if settings.max_concurrency is not None:
        add("Maximum request concurrency:", settings.max_concurrency)
    if not math.isinf(settings.rate):
        add("Request rate configured (RPS):", float(settings.rate))
    add("Benchmark duration (s):", measured.duration_s)
    add("Total input tokens:", figures.total_input)
    add("Total generated tokens:", figures.total_output)
    add("Request throughput (req/s):", figures.request_throughput)
    if figures.request_goodput is not None:
        add("Request goodput (req/s):", figures.request_goodput)
    add("Output token throughput (tok/s):", figures.output_throughput)
    add("Peak output token throughput (tok/s):", figures.max_output_tokens_per_s)
    add("Peak concurrent requests:", float(figures.max_concurrent_requests))
    add("Total token throughput (tok/s):", figures.total_token_throughput)
    for name in settings.metrics:
        short, title = TITLES[name]
        found = figures.spreads[name]
        lines.append(f"{title:-^{WIDTH}}")
        add(f"Mean {short} (ms):", found.mean)
        add(f"Median {short} (ms):", found.median)
        for at, value in found.percentiles.items():
            add(f"P{at:g} {short} (ms):", value)
    lines.append(f"{'Client':-^{WIDTH}}")
    add("Max send lag (ms):", measured.lag.send_s * 1000)
    add("Max event loop lag (ms):", measured.lag.loop_s * 1000)
    add("Peak requests in flight:", measured.peak_in_flight)
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def json_of(
    settings: BenchSettings,
    measured: Measured,
    figures: Figures,
    *,
    about: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> dict[str, Any]:
    """Collect what is written as JSON.

    Args:
        settings: Of the run.
        measured: What it gave.
        figures: What was worked out.
        about: `date`, `model_id`, `server_version` and `notes`.
        metadata: The user's own entries.
    """
    rate = "trace" if settings.replays else settings.rate
    found: dict[str, Any] = {
        **about,
        "endpoint_type": settings.backend,
        "backend": settings.backend,
        "label": settings.backend,
        "tokenizer_id": settings.tokenizer,
        "dataset_name": settings.dataset_name,
        "dataset_path": settings.dataset_path,
        "num_prompts": settings.num_prompts,
        "seed": settings.seed,
        "ignore_eos": settings.ignore_eos,
        "temperature": settings.temperature,
        **metadata,
        "request_rate": "inf" if rate == math.inf else rate,
        "burstiness": "inf" if math.isinf(settings.burstiness) else settings.burstiness,
        "time_scale": settings.time_scale,
        "max_concurrency": settings.max_concurrency,
        "duration": measured.duration_s,
        "completed": figures.completed,
        "failed": figures.failed,
        "num_unfinished": measured.num_unfinished,
        "is_partial": measured.is_partial,
        "error_counts": dict(figures.errors),
        "total_input_tokens": figures.total_input,
        "total_output_tokens": figures.total_output,
        "request_throughput": figures.request_throughput,
        "request_goodput": figures.request_goodput,
        "output_throughput": figures.output_throughput,
        "total_token_throughput": figures.total_token_throughput,
        "max_output_tokens_per_s": figures.max_output_tokens_per_s,
        "max_concurrent_requests": figures.max_concurrent_requests,
        "num_without_usage": figures.num_without_usage,
        "client_lag": {
            "max_send_ms": measured.lag.send_s * 1000,
            "max_event_loop_ms": measured.lag.loop_s * 1000,
        },
        "client_peak_in_flight": measured.peak_in_flight,
    }
    for name, values in figures.spreads.items():
        found[f"mean_{name}_ms"] = values.mean
        found[f"median_{name}_ms"] = values.median
        found[f"std_{name}_ms"] = values.std
        found |= {f"p{at:g}_{name}_ms": value for at, value in values.percentiles.items()}
    return found | details_of(measured.outcomes) if settings.save_detailed else found


def details_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """List every request's figures, in seconds since the start of the run."""
    return {
        "input_lens": [outcome.prompt_tokens for outcome in outcomes],
        "output_lens": [
            0 if outcome.error is not None else outcome.output_tokens for outcome in outcomes
        ],
        "ttfts": [outcome.ttft_s for outcome in outcomes],
        "itls": [outcome.itl_s for outcome in outcomes],
        "latencies": [outcome.latency_s for outcome in outcomes],
        "start_times": [outcome.start_s for outcome in outcomes],
        "queue_times": [outcome.queue_s for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error or "" for outcome in outcomes],
    }


def file_name(settings: BenchSettings, model: str, date: str) -> str:
    """Name the JSON file as vLLM does."""
    if settings.result_filename is not None:
        return settings.result_filename
    rate = "trace" if settings.replays else f"{settings.rate}qps"
    limit = settings.max_concurrency
    concurrency = "" if limit is None else f"-concurrency{limit}"
    return f"{settings.backend}-{rate}{concurrency}-{model.split('/')[-1]}-{date}.json"
