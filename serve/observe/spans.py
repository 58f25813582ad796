"""One OpenTelemetry span for each request, as the conventions for generative AI name things.

Source: OpenTelemetry semantic conventions for generative AI client spans,
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/.
"""

import asyncio
import concurrent.futures
import threading

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import distkv_jax
from distkv_jax.engine.sampling_params import SamplingParams
from serve.observe.outcome import outcome_of
from serve.observe.record import Observer, Record

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_SEED = "gen_ai.request.seed"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
ERROR_TYPE = "error.type"

CHAT, TEXT_COMPLETION = "chat", "text_completion"
EXPORT_TIMEOUT_S = 5.0
"""For one batch; a collector that is away costs spans, never requests."""


def exporter_to(endpoint: str) -> SpanExporter:
    """Make what sends spans to a collector."""
    return OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S)


class Spans(Observer):
    """Makes a request's spans when it has ended, with the times at which things happened.

    They are sent in batches, by a thread of its own; with too many of them some are dropped.
    """

    def __init__(self, exporter: SpanExporter, *, model: str) -> None:
        """Prepare.

        Args:
            exporter: Where spans go.
            model: As the server calls it.
        """
        self._model = model
        ours = Resource({"service.name": "distkv", "service.version": distkv_jax.__version__})
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say counts more.
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter)
        # It is closed by `close`, with a bound, and not again when the process exits.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("distkv", distkv_jax.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def on_end(self, record: Record) -> None:
        """Make the request's span, a child of its caller's, and one for each of its phases."""
        operation = CHAT if "chat" in record.operation else TEXT_COMPLETION
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract(record.carrier),
            kind=SpanKind.SERVER,
            start_time=record.arrival_ns,
        )
        end = record.arrival if record.end is None else record.end
        if span.is_recording():
            span.set_attributes(request_attributes(record, operation, self._model))
            span.set_attributes(response_attributes(record, self._model))
            if record.error is not None:
                code = outcome_of(record)
                span.set_attribute(ERROR_TYPE, code)
                # Not its text, which quotes what was given.
                span.set_status(Status(StatusCode.ERROR, code))
            self._add_phases(span, record, end)
        span.end(nanoseconds(record, end))

    def _add_phases(self, span: Span, record: Record, end: float) -> None:
        moments = [
            ("queue", record.arrival),
            ("prefill", record.scheduled),
            ("decode", record.first_token),
        ]
        context = set_span_in_context(span)
        begun = [(name, moment) for name, moment in moments if moment is not None]
        ends = [*(moment for _, moment in begun[1:]), end]
        for (name, begin), stop in zip(begun, ends, strict=True):
            phase = self._tracer.start_span(
                name, context=context, start_time=nanoseconds(record, begin)
            )
            phase.end(nanoseconds(record, stop))

    async def close(self, timeout_s: float) -> None:
        """Send what is left; what could not be sent in time is lost."""
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()

        def send_rest() -> None:
            # Up to 30 seconds, whatever the collector does.
            self._processor.shutdown()
            ended.set_result(None)

        # Not of the loop's threads: the process waits for those when it exits.
        threading.Thread(target=send_rest, name="distkv-traces", daemon=True).start()
        await asyncio.wait([asyncio.wrap_future(ended)], timeout=timeout_s)
        if not ended.done():
            # Ends its attempts.
            self._exporter.shutdown()


def request_attributes(record: Record, operation: str, model: str) -> dict[str, AttributeValue]:
    """Say what was asked; never its text."""
    params = record.params
    found: dict[str, AttributeValue | None] = {
        OPERATION_NAME: operation,
        PROVIDER_NAME: "distkv",
        REQUEST_MODEL: model,
        "distkv.operation": record.operation,
        "distkv.caller": record.caller or None,
    }
    if params is not None:
        found |= sampling_attributes(params)
    return {name: value for name, value in found.items() if value is not None}


def sampling_attributes(params: SamplingParams) -> dict[str, AttributeValue | None]:
    """Say how is sampled; None for what was not asked for."""
    return {
        REQUEST_CHOICE_COUNT: params.n if params.n != 1 else None,
        REQUEST_MAX_TOKENS: params.max_tokens,
        REQUEST_TEMPERATURE: params.temperature,
        REQUEST_TOP_P: params.top_p,
        REQUEST_TOP_K: float(params.top_k) if params.top_k > 0 else None,
        REQUEST_FREQUENCY_PENALTY: params.frequency_penalty,
        REQUEST_PRESENCE_PENALTY: params.presence_penalty,
        REQUEST_SEED: params.seed,
    }


def response_attributes(record: Record, model: str) -> dict[str, AttributeValue]:
    """Say what was answered; never its text."""
    found: dict[str, AttributeValue] = {
        RESPONSE_ID: record.request_id,
        USAGE_INPUT_TOKENS: record.num_prompt_tokens,
        USAGE_OUTPUT_TOKENS: record.num_tokens,
        USAGE_CACHE_READ_INPUT_TOKENS: record.num_cached_tokens,
        "distkv.remote_kv_tokens": record.remote_kv_tokens,
        "distkv.instances_used": sorted(record.instances_used),
    }
    if record.first_token is not None:
        found[RESPONSE_MODEL] = model
    if record.finish_reasons:
        found[RESPONSE_FINISH_REASONS] = list(record.finish_reasons)
    if record.first_token is not None:
        found[RESPONSE_TIME_TO_FIRST_CHUNK] = record.first_token - record.arrival
    return found


def nanoseconds(record: Record, moment: float) -> int:
    """Turn a time of `time.monotonic()` into nanoseconds since 1970."""
    return record.arrival_ns + int((moment - record.arrival) * 1e9)
