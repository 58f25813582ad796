"""From outcomes to figures, by the names and definitions of `vllm bench serve`.

Two of them are coarse there, and here to be comparable: `max_concurrent_requests` counts the
requests that touched a second of the run, so that short ones one after the other look concurrent
(`client_peak_in_flight` is exact), and `max_output_tokens_per_s` puts tokens into seconds by the
times of pieces; a piece counts its share of its answer's tokens.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from serve.bench.exchange import Outcome


class Spread(NamedTuple):
    """One figure over all requests or pieces, in milliseconds; 0 where there are none.

    Attributes:
        mean: Mean.
        median: Median.
        std: Standard deviation of all, not of a sample.
        percentiles: By percentile, interpolated linearly.
    """

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What is reported of a run; failed requests count in nothing but `failed`.

    Attributes:
        completed: Requests that were answered.
        failed: Requests that were not.
        errors: How often each error came, most frequent first.
        total_input: Prompt tokens.
        total_output: Generated tokens.
        request_throughput: Requests answered in a second.
        request_goodput: Of them those within the limits; None without limits.
        output_throughput: Generated tokens in a second.
        total_token_throughput: Prompt and generated tokens in a second.
        max_output_tokens_per_s: Most in one second of the run.
        max_concurrent_requests: Most requests that touched one second of the run.
        num_without_usage: Answers whose tokens are counted by pieces.
        spreads: By name: ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue.
    """

    completed: int
    failed: int
    errors: Mapping[str, int]
    total_input: int
    total_output: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    num_without_usage: int
    spreads: Mapping[str, Spread]


def work_out(
    outcomes: Sequence[Outcome],
    duration_s: float,
    *,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> Figures:
    """Work out all figures.

    Args:
        outcomes: Of requests that ended.
        duration_s: Of the run.
        percentiles: Which, within 0..100.
        goodput_ms: Limits of ttft, tpot and e2el within which a request counts as good.
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    errors = collections.Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    total_input = sum(outcome.prompt_tokens for outcome in good)
    total_output = sum(outcome.output_tokens for outcome in good)
    values = {
        "ttft": [outcome.ttft_s for outcome in good],
        "tpot": [tpot(outcome) for outcome in good if outcome.output_tokens > 1],
        "itl": [gap for outcome in good for gap in outcome.itl_s],
        "e2el": [outcome.latency_s for outcome in good],
        "client_queue_time": [outcome.queue_s for outcome in good],
        "e2el_including_client_queue": [outcome.latency_s + outcome.queue_s for outcome in good],
    }
    tokens, requests = by_second(good)
    return Figures(
        completed=len(good),
        failed=len(outcomes) - len(good),
        errors=dict(errors.most_common()),
        total_input=total_input,
        total_output=total_output,
        request_throughput=len(good) / duration_s,
        request_goodput=(
            sum(is_good(outcome, goodput_ms) for outcome in good) / duration_s
            if goodput_ms
            else None
        ),
        output_throughput=total_output / duration_s,
        total_token_throughput=(total_input + total_output) / duration_s,
        max_output_tokens_per_s=max(tokens, default=0.0),
        max_concurrent_requests=max(requests, default=0),
        num_without_usage=sum(not outcome.has_usage for outcome in good),
        spreads={name: spread(found, percentiles) for name, found in values.items()},
    )


def tpot(outcome: Outcome) -> float:
    """Give the seconds for each token after the first; 0 for an answer of one token."""
    if outcome.output_tokens <= 1:
        return 0.0
    return (outcome.latency_s - outcome.ttft_s) / (outcome.output_tokens - 1)


def is_good(outcome: Outcome, limits_ms: Mapping[str, float]) -> bool:
    """Say whether a request kept all limits."""
    found_s = {"ttft": outcome.ttft_s, "tpot": tpot(outcome), "e2el": outcome.latency_s}
    return all(found_s[name] * 1000 <= limit for name, limit in limits_ms.items())


def spread(values_s: Sequence[float], percentiles: Sequence[float]) -> Spread:
    """Describe values given in seconds."""
    values = np.array(values_s or [0.0]) * 1000
    return Spread(
        float(np.mean(values)),
        float(np.median(values)),
        float(np.std(values)),
        {at: float(np.percentile(values, at)) for at in percentiles},
    )


def by_second(good: Sequence[Outcome]) -> tuple[list[float], list[int]]:
    """Count generated tokens and requests under way in each second since the first was sent."""
    if not good:
        return [], []
    first = min(outcome.start_s for outcome in good)
    last = max(outcome.start_s + outcome.latency_s for outcome in good)
    tokens, requests = [0.0] * (math.floor(last - first) + 1), [0] * (math.floor(last - first) + 1)
    for outcome in good:
        begin = outcome.start_s - first
        times = np.cumsum([begin + outcome.ttft_s, *outcome.itl_s])
        for at in times.tolist():
            # Sums of gaps may round past the end.
            tokens[min(int(at), len(tokens) - 1)] += outcome.output_tokens / len(times)
        for second in range(int(begin), int(begin + outcome.latency_s) + 1):
            requests[second] += 1
    return tokens, requests
