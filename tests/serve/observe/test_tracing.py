"""Every request has one span with the names of the conventions, and no collector can harm one."""

import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from distkv_jax.cli.main import main
from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from serve.observe import spans
from serve.observe.audience import Audience
from serve.observe.spans import Spans
from tests.serve.observe.conftest import LATE_S, Records
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    paused,
    record_of,
    request_of,
    running,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def traced(web: Running, records: Records) -> Iterator[Any]:
    """Gives what was exported, once requests have ended."""
    exporter = InMemorySpanExporter()
    observer = Spans(exporter, model="small")
    dispatcher = web.server.dispatcher
    before = dispatcher._audience
    dispatcher._audience = Audience([observer, *before.observers])

    def exported(count: int) -> list[ReadableSpan]:
        records.wait(count)
        observer._processor.force_flush()
        return list(exporter.get_finished_spans())

    yield exported
    dispatcher._audience = before
    web.loop.run(observer.close(5.0))


def test_names_are_those_of_the_conventions() -> None:
    ours = [str(value) for name, value in vars(spans).items() if name.isupper()]
    ours = [name for name in ours if name.startswith(("gen_ai.", "error."))]
    conventions = [*vars(gen_ai_attributes).values(), error_attributes.ERROR_TYPE]
    assert len(ours) > 15
    assert [name for name in ours if name not in conventions] == []
    known = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    assert {spans.CHAT, spans.TEXT_COMPLETION} <= known

    # And none of them is only a name.
    params = SamplingParams(n=2, top_k=5, seed=7)
    request = Request(request_id="a", prompt_token_ids=(1,), params=params)
    record = record_of(request)
    record.hear(Update(request, 0, (1,), finish_reason="length"), record.arrival + 1)
    sent = {
        *spans.request_attributes(record, spans.CHAT, "small"),
        *spans.response_attributes(record, "small"),
    }
    assert set(ours) - sent == {"error.type"}


def test_a_request_is_a_span_with_its_phases(web: Running, records: Records, traced: Any) -> None:
    message = request_of(
        1, 2, 3, max_tokens=3, n=2, top_k=5, seed=7, ignore_eos=True, request_id="a"
    )
    before = time.time_ns()
    web.inference.Generate(message, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
    exported = {span.name: span for span in traced(1)}
    assert set(exported) == {"text_completion small", "queue", "prefill", "decode"}

    span = exported["text_completion small"]
    attributes = dict(span.attributes or {})
    first_s = attributes.pop("gen_ai.response.time_to_first_chunk")
    (record,) = records.ended
    assert record.first_token is not None and record.end is not None
    assert first_s == pytest.approx(record.first_token - record.arrival)
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "distkv",
        "gen_ai.request.model": "small",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 5.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": "a",
        "gen_ai.response.model": "small",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "distkv.operation": "grpc.Generate",
        "distkv.remote_kv_tokens": record.remote_kv_tokens,
        "distkv.instances_used": tuple(sorted(record.instances_used)),
    }
    assert span.kind is SpanKind.SERVER and span.status.status_code is StatusCode.UNSET
    assert span.context is not None and span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT
    times = [span.start_time]
    for name in ("queue", "prefill", "decode"):
        phase = exported[name]
        assert phase.parent is not None and phase.parent.span_id == span.context.span_id
        assert phase.start_time == times[-1]
        times.append(phase.end_time)
    assert times[-1] == span.end_time
    assert before <= times[0] <= times[1] <= times[2] <= times[3] <= time.time_ns()


def is_unread(span: ReadableSpan) -> bool:
    """Whether it says nothing of how was sampled."""
    return "gen_ai.request.temperature" not in dict(span.attributes or {})


def test_an_error_is_the_status_and_not_its_text(web: Running, traced: Any) -> None:
    failure_of(web.inference.Generate, request_of(999_999))
    failure_of(web.inference.Generate, request_of(1, top_p=2.0))
    with paused(web.llm):
        failure_of(web.inference.Generate, request_of(1), timeout=LATE_S)
        exported = traced(3)
    unread = [span for span in exported if not span.parent and is_unread(span)]
    assert len(unread) == 1
    for span in exported:
        assert span.start_time is not None and span.end_time is not None
        assert span.start_time <= span.end_time
    by_code = {span.status.description: span for span in exported if span.parent is None}
    assert set(by_code) == {"INVALID_ARGUMENT", "DEADLINE_EXCEEDED"}
    for code, span in by_code.items():
        assert span.status.status_code is StatusCode.ERROR
        assert dict(span.attributes or {})["error.type"] == code


def test_a_trace_that_its_caller_does_not_sample_is_not_sent(web: Running, traced: Any) -> None:
    metadata = [("traceparent", f"00-{TRACE}-{PARENT}-00")]
    web.inference.Generate(request_of(1, max_tokens=1), metadata=metadata)
    assert traced(1) == []


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector, as far as we need one."""

    def __init__(self) -> None:
        self.got: list[otlp.ExportTraceServiceRequest] = []

    def Export(
        self, request: otlp.ExportTraceServiceRequest, context: Any
    ) -> otlp.ExportTraceServiceResponse:
        del context
        self.got.append(request)
        return otlp.ExportTraceServiceResponse()


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield collector, f"http://127.0.0.1:{port}"
        server.stop(None).wait()


def test_a_collector_has_every_span_when_the_server_has_stopped(
    loop: Loop, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collecting() as (collector, url):
        with running(loop, llm, otlp_traces_endpoint=url) as service:
            for number in range(3):
                service.inference.Generate(request_of(1, max_tokens=2, request_id=f"r{number}"))
        (sent,) = [one for request in collector.got for one in request.resource_spans]

    resource = {one.key: one.value.string_value for one in sent.resource.attributes}
    assert resource["service.name"] == "distkv"
    assert resource["deployment.environment.name"] == "test"
    found = [span for scope in sent.scope_spans for span in scope.spans]
    names = {
        one.value.string_value
        for span in found
        for one in span.attributes
        if one.key == "gen_ai.response.id"
    }
    assert names == {"r0", "r1", "r2"} and len(found) == 3 * 4


def test_a_collector_that_is_away_holds_nothing_up(
    loop: Loop, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.server.LAST_WORDS_S", 0.2)
    # It would go on for half a minute.
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT_S", 60.0)
    url = "http://127.0.0.1:1"
    with running(loop, llm, otlp_traces_endpoint=url) as service:
        service.inference.Generate(request_of(1, max_tokens=2))
        begin = time.monotonic()
        service.on_loop(service.server.drain)
        assert service.wait()
        assert time.monotonic() - begin < 15


@pytest.mark.parametrize(
    ("url", "is_installed", "error"),
    [
        ("localhost:4317", True, "otlp_traces_endpoint='localhost:4317' must begin with http://"),
        (
            "http://x:1",
            False,
            "needs the package opentelemetry.exporter: pip install 'distkv-jax[otel]'",
        ),
    ],
)
def test_what_is_missing_is_told_before_loading(
    url: str,
    is_installed: bool,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("distkv_jax.cli.serve.configure_logs", lambda settings: None)
    if not is_installed:
        for name in [one for one in sys.modules if one.partition(".")[0] == "opentelemetry"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "serve.observe.spans")
        monkeypatch.delattr("serve.observe.spans")
        monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert main(["serve", "no-such-model", "--otlp-traces-endpoint", url]) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert error in first
    assert hint.startswith("hint: ")
