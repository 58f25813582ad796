"""What is measured and how, as written on the command line."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from distkv_jax.errors import ConfigError

PORTS = {"openai": 8000, "openai-chat": 8000, "grpc": 50051}
ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
METRICS = ("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
TRACES = ("mooncake", "burstgpt", "azure")
"""Datasets whose requests have times of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """Settings of one measurement, under vLLM's names.

    Attributes:
        backend: What is spoken to the server: openai for completions, openai-chat for chat
            completions, both over HTTP; grpc for this package's own service.
        base_url: Address of the server, as http://HOST:PORT (grpc: HOST:PORT), in place of host
            and port.
        host: Host of the server.
        port: Port of the server; None for 8000, grpc 50051.
        endpoint: Path that requests are posted to; None for the backend's usual one.
        model: Name of the model to ask for; None asks the server.
        tokenizer: A tokenizer.json or a folder with one. Without it prompts are token ids, which
            openai-chat and sharegpt cannot use.
        vocab_size: Prompts are made of token ids below this; None for the tokenizer's or what
            the server says.
        dataset_name: Where requests come from.
        dataset_path: File of the dataset; random has none.
        num_prompts: Requests to send, at most those in the file.
        random_input_len: Tokens of a random prompt, without the prefix.
        random_output_len: Tokens to generate for a random prompt.
        random_range_ratio: Both lengths are drawn from 1 - this to 1 + this times them.
        random_prefix_len: Tokens that all random prompts begin with, the same for all.
        sharegpt_output_len: Tokens to generate for every request of sharegpt; None for as many
            as the recorded answer has.
        request_rate: Requests sent in a second, inf sends all at once; None for a trace's own
            times, other datasets inf.
        burstiness: Shape of the gamma distribution of the times between requests: 1 is Poisson,
            less comes in bursts, more is even, inf is one by one.
        time_scale: Seconds of the run for one second of a trace's own times; 0.1 is ten times
            as fast.
        max_concurrency: Requests under way at once; None for no limit.
        num_warmups: Requests sent before, which are not measured.
        seed: The same seed gives the same prompts and times.
        ignore_eos: Generate as many tokens as asked for, past the model's end token.
        temperature: Of sampling; None leaves it to the server.
        percentile_metrics: Figures in the text, separated by commas: ttft, tpot, itl, e2el,
            client_queue_time, e2el_including_client_queue.
        metric_percentiles: Percentiles to report, separated by commas.
        timeout_s: Seconds that one request may take before it counts as failed.
        save_result: Write figures as JSON.
        save_detailed: Write each request's times, text and error too.
        result_dir: Folder for the JSON.
        result_filename: Name of the JSON file; None is made of backend, rate, model and date.
        allow_failures: Exit code 0 even if requests failed.
    """

    backend: Literal["openai", "openai-chat", "grpc"] = "openai"
    base_url: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    endpoint: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    dataset_name: Literal["random", "sharegpt", "mooncake", "burstgpt", "azure"] = "random"
    dataset_path: str | None = None
    num_prompts: int = 1000
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    sharegpt_output_len: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    time_scale: float = 1.0
    max_concurrency: int | None = None
    num_warmups: int = 0
    seed: int = 0
    ignore_eos: bool = False
    temperature: float | None = None
    percentile_metrics: str = "ttft,tpot,itl,e2el"
    metric_percentiles: str = "99"
    timeout_s: float = 6 * 3600.0
    save_result: bool = False
    save_detailed: bool = False
    result_dir: str = "."
    result_filename: str | None = None
    allow_failures: bool = False

    def __post_init__(self) -> None:
        for name in ("num_prompts", "random_input_len", "random_output_len"):
            self._check(name, at_least=1)
        for name in ("random_prefix_len", "num_warmups", "seed"):
            self._check(name, at_least=0)
        for name in ("vocab_size", "max_concurrency", "sharegpt_output_len"):
            self._check(name, at_least=1)
        for name in ("request_rate", "burstiness", "time_scale", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} must be above 0")
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError(f"random_range_ratio={self.random_range_ratio} must be in [0, 1)")
        if (self.dataset_name == "random") != (self.dataset_path is None):
            needs = "has no file" if self.dataset_name == "random" else "needs --dataset-path"
            raise ConfigError(f"dataset {self.dataset_name} {needs}")
        if self.endpoint is not None and self.backend == "grpc":
            raise ConfigError(f"endpoint={self.endpoint} has no meaning with backend grpc")
        # Read here, so that what is wrong is told before anything is sent.
        _ = self.metrics, self.percentiles

    def _check(self, name: str, *, at_least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < at_least:
            raise ConfigError(f"{name}={value} must be at least {at_least}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Figures in the text."""
        names = tuple(name.strip() for name in self.percentile_metrics.split(","))
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"percentile_metrics has {name!r}, allowed: {', '.join(METRICS)}")
        return names

    @property
    def percentiles(self) -> tuple[float, ...]:
        """Percentiles to report."""
        try:
            found = tuple(float(word) for word in self.metric_percentiles.split(","))
        except ValueError:
            found = (math.nan,)
        if not all(0 <= one <= 100 for one in found):
            raise ConfigError(
                f"metric_percentiles={self.metric_percentiles!r} must be numbers within 0..100, "
                "separated by commas"
            )
        return found

    @property
    def replays(self) -> bool:
        """Whether requests are sent at a trace's own times."""
        return self.dataset_name in TRACES and self.request_rate is None

    @property
    def rate(self) -> float:
        """Requests in a second, where not a trace's times decide."""
        return math.inf if self.request_rate is None else self.request_rate

    @property
    def url(self) -> str:
        """Where the server is, without a path; for gRPC HOST:PORT."""
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = f"{host}:{PORTS[self.backend] if self.port is None else self.port}"
        return address if self.backend == "grpc" else f"http://{address}"


def read_goodput(words: Sequence[str]) -> dict[str, float]:
    """Read `NAME:MILLISECONDS` pairs: the limits within which a request counts as good.

    Raises:
        ConfigError: A pair is not of that form.
    """
    limits = {}
    for word in words:
        name, _, limit = word.partition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            limits[name] = math.nan
        if name not in GOODPUT_METRICS or not limits[name] >= 0:
            raise ConfigError(
                f"goodput {word!r} must be NAME:MILLISECONDS with NAME one of "
                f"{', '.join(GOODPUT_METRICS)}"
            )
    return limits


def read_metadata(words: Sequence[str]) -> Mapping[str, str]:
    """Read `KEY=VALUE` pairs, which are written into the JSON as they are.

    Raises:
        ConfigError: A pair is not of that form.
    """
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"metadata {word!r} must be KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs
