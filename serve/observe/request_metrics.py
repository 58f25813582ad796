"""Counts and times of requests, under the names and with the buckets of vLLM."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.errors import row_of
from serve.observe.outcome import CODES, REASONS, outcome_of
from serve.observe.record import Observer, Record

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
GAP_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class RequestMetrics(Observer):
    """Counts requests; the event loop owns it, any thread may read its registry.

    Times of whole requests are of those that ended as they should, so that refused ones do not
    make a busy server look quick; `time_to_first_token` and `inter_token_latency` are of all.
    """

    def __init__(self, registry: CollectorRegistry, *, max_model_len: int) -> None:
        """Begin with zeros, one for each way a request can end.

        Args:
            registry: Where the metrics are to be found.
            max_model_len: Longest request in tokens, the end of the buckets of lengths.
        """

        def seconds(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(
                f"distkv_{name}_seconds", f"Seconds {text}", buckets=buckets, registry=registry
            )

        def tokens(name: str, text: str) -> Histogram:
            buckets = tuple(one_two_five(max_model_len))
            return Histogram(f"distkv_{name}", text, buckets=buckets, registry=registry)

        self._under_way = Gauge(
            "distkv_num_requests_under_way",
            "Requests that came and have not been answered to the end",
            registry=registry,
        )
        self._successes = Counter(
            "distkv_request_success",
            "Requests that ended as they should; of several samples length counts before stop",
            ["finished_reason"],
            registry=registry,
        )
        self._failures = Counter(
            "distkv_request_failures",
            "Requests that were refused, cancelled or failed, and calls that were not let in, by "
            "the name of their gRPC code",
            ["code"],
            registry=registry,
        )
        for reason in REASONS:
            self._successes.labels(reason)
        for code in CODES:
            self._failures.labels(code)
        self._first_token = seconds(
            "time_to_first_token", "from a request's arrival to its first token", FIRST_TOKEN_S
        )
        self._gap = seconds("inter_token_latency", "between two tokens of a sample", GAP_S)
        self._whole = seconds(
            "e2e_request_latency", "from a request's arrival to its last token", REQUEST_S
        )
        self._queue = seconds(
            "request_queue_time", "from a request's arrival to its first slot", REQUEST_S
        )
        self._prefill = seconds(
            "request_prefill_time", "from a request's first slot to its first token", REQUEST_S
        )
        self._decode = seconds(
            "request_decode_time", "from a request's first token to its last", REQUEST_S
        )
        self._prompt = tokens("request_prompt_tokens", "Prompt tokens of a request")
        self._generated = tokens(
            "request_generation_tokens", "Tokens generated for a request, by all its samples"
        )
        self._remote = tokens(
            "request_remote_kv_tokens", "Most KV tokens that a request had away from home at once"
        )

    def on_refusal(self, error: Exception) -> None:
        """Count a call that was not let in, of whatever method."""
        self._failures.labels(row_of(error).code.name).inc()

    def on_begin(self, record: Record) -> None:
        """Count it in."""
        del record
        self._under_way.inc()

    def on_first_token(self, record: Record) -> None:
        """Count how long it took."""
        if record.first_token is not None:
            self._first_token.observe(record.first_token - record.arrival)

    def on_gap(self, record: Record, seconds: float) -> None:
        """Count a gap."""
        del record
        self._gap.observe(seconds)

    def on_end(self, record: Record) -> None:
        """Count how it ended, and what it took if it ended as it should."""
        self._under_way.dec()
        outcome = outcome_of(record)
        if record.error is not None:
            self._failures.labels(outcome).inc()
            return
        self._successes.labels(outcome).inc()
        self._prompt.observe(record.num_prompt_tokens)
        self._generated.observe(record.num_tokens)
        self._remote.observe(record.remote_kv_tokens)
        scheduled, first, end = record.scheduled, record.first_token, record.end
        # A request that ended as it should has had all three.
        if scheduled is not None and first is not None and end is not None:
            self._queue.observe(scheduled - record.arrival)
            self._prefill.observe(first - scheduled)
            self._decode.observe(end - first)
            self._whole.observe(end - record.arrival)


def one_two_five(largest: int) -> Iterator[int]:
    """List 1, 2, 5, 10, 20, 50, ... up to a number."""
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale > largest:
                return
            yield digit * scale
        scale *= 10
