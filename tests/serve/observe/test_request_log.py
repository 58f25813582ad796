"""Every request has one log line at its end, with numbers, and without a word of its text."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from distkv_jax.cli.logs import LogSettings, configure_logs, formatter_of
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import QueueFull
from serve.observe import context, request_log
from serve.observe.context import RequestIdFilter
from serve.observe.record import Record
from serve.observe.request_log import MAX_EMPTY_PER_S, RequestLog
from tests.serve.observe.conftest import LATE_S, Records
from tests.serve.observe.scraping import get
from tests.serve.running import Loop, Running, failure_of, paused, request_of, wait_until

SECRET = "hello"


class Log:
    """A log as a command writes it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def requests(self) -> list[dict[str, object]]:
        return [line for line in self.lines() if line["message"] == "request ended"]


@pytest.fixture(params=["json"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    one, root = Log(), logging.getLogger()
    handler = logging.StreamHandler(one.stream)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(formatter_of(LogSettings(log_format=request.param)))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield one
    root.setLevel(level)
    root.removeHandler(handler)


def test_a_line_has_the_numbers_of_the_request(web: Running, records: Records, log: Log) -> None:
    web.inference.Generate(request_of(1, 2, 3, max_tokens=3, n=2, request_id="a", ignore_eos=True))
    (record,) = records.wait(1)

    (line,) = log.requests()
    assert line["level"] == "INFO" and line["logger"] == "distkv.requests"
    assert line["request_id"] == "a" and line["operation"] == "grpc.Generate"
    assert (line["outcome"], line["prompt_tokens"], line["generated_tokens"]) == ("length", 3, 6)
    assert record.first_token is not None and record.end is not None
    assert line["ttft_s"] == pytest.approx(record.first_token - record.arrival, abs=1e-6)
    assert line["e2e_s"] == pytest.approx(record.end - record.arrival, abs=1e-6)
    assert "error" not in line and "caller" not in line
    assert set(line) <= {*request_log.FIELDS, "time", "level", "logger", "message"}


def test_other_ends_have_a_code_and_a_name(web: Running, records: Records, log: Log) -> None:
    failure_of(web.inference.Generate, request_of(999_999, request_id="b"))
    failure_of(web.inference.Generate, request_of(1, top_p=7.0))
    with paused(web.llm):
        failure_of(web.inference.Generate, request_of(1, request_id="c"), timeout=LATE_S)
        records.wait(3)

    refused, unread, late = log.requests()
    assert (refused["request_id"], refused["outcome"]) == ("b", "INVALID_ARGUMENT")
    assert refused["error"] == "RequestError" and refused["generated_tokens"] == 0
    assert "ttft_s" not in refused
    assert unread["outcome"] == "INVALID_ARGUMENT"
    assert late["outcome"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("log", ["json", "text"], indirect=True)
def test_no_text_is_ever_logged(web: Running, records: Records, log: Log) -> None:
    answer = web.inference.Generate(request_of(text=SECRET, max_tokens=3, stop=["never-logged"]))
    failure_of(web.inference.Generate, request_of(text=SECRET, max_tokens=3, min_tokens=9))
    failure_of(web.inference.Generate, request_of(text=SECRET, stop=["never-logged" * 90]))
    failure_of(web.inference.Generate, request_of(text=SECRET * 500, max_tokens=3))
    with paused(web.llm):
        message = request_of(text=SECRET, stop=["never-logged"])
        failure_of(web.inference.Generate, message, timeout=LATE_S)
        records.wait(5)
    get(web, "/v1/completions", **{"content-type": "application/json"})

    assert "INVALID_ARGUMENT" in log.text()
    for words in (SECRET, "never-logged", answer.outputs[0].text):
        assert words not in log.text()


def test_all_lines_of_a_request_have_its_name(
    web: Running, records: Records, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = web.llm.make_request

    def make_and_log(*arguments: object, **named: object) -> object:
        logging.getLogger("serve.test").warning("made")
        return make(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(web.llm, "make_request", make_and_log)
    web.inference.Generate(request_of(1, max_tokens=1, request_id="short"))
    # Read in a thread.
    failure_of(web.inference.Generate, request_of(text="you " * 600, request_id="long"))
    records.wait(2)
    named = [line["request_id"] for line in log.lines() if line["message"] == "made"]
    assert named == ["short", "long"]
    logging.getLogger("serve.test").warning("outside")
    assert "request_id" not in log.lines()[-1]
    assert context.REQUEST_ID.get() is None


def test_a_flood_of_refusals_has_few_lines_and_a_count(
    loop: Loop, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "COUNT_S", 0.2)
    observer = RequestLog()

    async def flood() -> None:
        for number in range(1000):
            observer.on_end(refused(number))
        assert len(log.requests()) == MAX_EMPTY_PER_S
        served = refused(1000)
        served.num_tokens, served.error = 1, None
        observer.on_end(served)
        assert len(log.requests()) == MAX_EMPTY_PER_S + 1  # one that gave a token is always told

    loop.run(flood())
    # No request has to end before the others are told of.
    wait_until(lambda: len(log.lines()) > MAX_EMPTY_PER_S + 1, "the count is logged")
    count = log.lines()[-1]
    assert (count["outcome"], count["count"]) == ("RESOURCE_EXHAUSTED", 1000 - MAX_EMPTY_PER_S)

    async def next_one() -> None:
        observer.on_end(refused(1001))
        observer.close()

    loop.run(next_one())
    assert [line.get("request_id") for line in log.lines()[-2:]] == [None, "r1001"]


def refused(number: int) -> Record:
    return Record(
        request_id=f"r{number}",
        caller="",
        operation="test",
        params=SamplingParams(),
        carrier={},
        error=QueueFull("full"),
        end=0.0,
    )


@pytest.fixture
def as_before() -> Iterator[None]:
    """Leave the process's log as it was."""
    root, names = logging.getLogger(), ("distkv", "distkv_jax", "serve")
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in ("", *names)]
    # pytest's own would be closed.
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    for name, level in zip(("", *names), levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(
    ("settings", "is_shown"),
    [(LogSettings(), True), (LogSettings(log_level="warning", log_format="json"), False)],
)
def test_a_command_sets_form_and_level(
    settings: LogSettings, is_shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(settings)
    logging.getLogger("distkv.requests").info("request ended", extra={"outcome": "stop"})
    logging.getLogger("some.library").info("a library's chatter")
    logging.getLogger("serve.gate").warning("of ours")

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + is_shown
    if is_shown:
        assert lines[0].endswith("INFO distkv.requests: request ended outcome=stop")
    else:
        assert json.loads(lines[0])["message"] == "of ours"
