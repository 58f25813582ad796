"""`distkv bench serve` measures what a server does, and hides no failure."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from distkv_jax.cli.main import main
from serve.bench.backend import Piece
from serve.bench.load import Load, Measured
from serve.bench.workload import Item
from tests.serve.bench.fake_server import FakeServer
from tests.serve.bench.test_figures import Scripted
from tests.serve.running import Running

Run = Callable[..., tuple[int, dict[str, Any]]]
SAMPLES = Path(__file__).parent / "samples"
SMALL = "--num-prompts 4 --random-input-len 6 --random-output-len 5 --quiet".split()


@pytest.fixture
def run(fake: FakeServer, tmp_path: Path) -> Run:
    """Run the command on the fake server; gives the exit code and the JSON."""

    def run_it(*words: str) -> tuple[int, dict[str, Any]]:
        path = tmp_path / "out" / "r.json"
        saving = ("--save-result", "--save-detailed", "--result-dir", str(path.parent))
        place = ("--base-url", fake.url, "--result-filename", path.name)
        code = main(["bench", "serve", *SMALL, *place, *saving, *words])
        return code, json.loads(path.read_text()) if path.exists() else {}

    return run_it


def test_figures_are_what_the_server_does(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.first_s, fake.gap_s = 0.05, 0.02
    code, found = run("--ignore-eos", "--temperature", "0", "--metadata", "commit=abc")

    assert code == 0
    assert capsys.readouterr().out.startswith("============ Serving Benchmark Result ====")
    assert (found["completed"], found["failed"]) == (4, 0)
    # The server's count: one token put before the prompt, two tokens in a piece.
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (28, 24)
    assert (found["model_id"], found["server_version"]) == ("fake", "1.2.3")
    assert found["commit"] == "abc"
    # Sleeps are never short (a clock tick apart); how long they are is the machine's business.
    assert min(found["ttfts"]) >= 0.049
    assert [len(gaps) for gaps in found["itls"]] == [2] * 4
    assert sum(found["itls"][0]) + found["ttfts"][0] == pytest.approx(found["latencies"][0])
    assert min(found["latencies"]) >= 0.087
    assert max(found["latencies"]) <= found["duration"]
    assert found["client_peak_in_flight"] == 4
    assert found["generated_texts"] == ["www"] * 4

    body = fake.requests[0]
    assert len(body.pop("prompt")) == 6
    assert body == {
        "model": "fake",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "ignore_eos": True,
        "temperature": 0.0,
    }


def test_the_role_of_a_chat_is_no_first_token(
    run: Run, fake: FakeServer, tokenizer_file: Path
) -> None:
    fake.first_s = 0.05
    code, found = run("--backend", "openai-chat", "--tokenizer", str(tokenizer_file))

    assert code == 0
    assert min(found["ttfts"]) >= 0.049
    assert found["generated_texts"] == ["www"] * 4
    (message,) = fake.requests[0]["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 6)
    assert fake.requests[0]["max_completion_tokens"] == 5


def test_without_usage_it_says_that_it_counts_pieces(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.has_usage = False
    code, found = run()

    assert code == 0
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (24, 12)
    assert found["num_without_usage"] == 4
    assert "note: 4 answers came without usage" in capsys.readouterr().err


def test_every_failure_is_counted_by_its_text(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("refused", "html", "in stream", "cut off", "nonsense", "refused")
    fake.bad = dict(enumerate(names))
    code, found = run("--num-prompts", "7", "--max-concurrency", "1")

    assert code == 1
    assert (found["completed"], found["failed"]) == (1, 6)
    counts = found["error_counts"]
    assert counts.pop("HTTP 429: queue full") == 2
    assert counts.pop("HTTP 502: <p>proxy</p>") == 1
    assert counts.pop("device lost") == 1
    assert counts.pop("the stream ended before [DONE]") == 1
    (nonsense,) = counts
    assert nonsense.startswith("the server sent what is not a completion: ")
    # Failed ones are in no figure.
    assert found["total_output_tokens"] == 6
    assert "failed 2: HTTP 429: queue full" in capsys.readouterr().err


def test_failures_may_be_allowed(run: Run, fake: FakeServer) -> None:
    fake.bad = {0: "refused"}
    code, found = run("--allow-failures")

    assert (code, found["failed"]) == (0, 1)


def test_a_server_that_does_not_answer_in_time_has_failed(run: Run, fake: FakeServer) -> None:
    fake.first_s = 60
    code, found = run("--timeout-s", "0.1", "--num-prompts", "1")

    assert (code, found["error_counts"]) == (1, {"no answer within 0.1 s": 1})


def test_no_more_requests_than_allowed_are_under_way(run: Run, fake: FakeServer) -> None:
    fake.first_s = 0.01
    _, found = run("--max-concurrency", "2", "--num-prompts", "6")

    assert found["client_peak_in_flight"] == 2
    # The last two waited for two pairs before them.
    assert found["queue_times"][-1] >= 0.019


def test_warm_ups_are_sent_and_not_measured(run: Run, fake: FakeServer) -> None:
    _, found = run("--num-warmups", "2")

    assert len(fake.requests) == 6
    assert found["completed"] == 4


def test_a_warm_up_that_fails_ends_it(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.bad = {0: "refused"}

    assert run("--num-warmups", "1")[0] == 2
    assert "error: the warm-up request failed: HTTP 429: queue full" in capsys.readouterr().err


def test_a_trace_is_replayed_in_its_time(run: Run, fake: FakeServer) -> None:
    trace = ("--dataset-name", "azure", "--dataset-path", str(SAMPLES / "azure.csv"))
    _, found = run(*trace, "--time-scale", "0.01")

    assert found["request_rate"] == "trace"
    assert [body["max_tokens"] for body in fake.requests] == [44, 109, 1]
    starts = found["start_times"]
    # Never before their time: 4.264 and 6.719 s of the trace.
    assert starts[1] >= 0.0426 and starts[2] >= 0.0671
    assert found["notes"] == ["the trace has 3 requests, 4 were asked for"]


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"OPENAI_API_KEY": "theirs"}, "Bearer theirs"),
        ({"OPENAI_API_KEY": "theirs", "DISTKV_API_KEY": "ours"}, "Bearer theirs"),
        ({"DISTKV_API_KEY": "ours"}, "Bearer ours"),
        ({}, None),
    ],
)
def test_the_key_is_taken_from_the_environment(
    variables: dict[str, str],
    header: str | None,
    run: Run,
    fake: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert run()[0] == 0
    assert fake.headers.get("Authorization") == header


def test_a_vocabulary_that_nobody_tells_is_asked_for(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.model = {"id": "silent"}

    assert run()[0] == 2
    assert "give --vocab-size, or --tokenizer" in capsys.readouterr().err
    assert run("--vocab-size", "5")[0] == 0
    assert max(max(body["prompt"]) for body in fake.requests) == 4


def test_a_server_that_refuses_or_is_not_there_is_told(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.bad = {-1: "models"}
    assert run()[0] == 2
    assert f"error: {fake.url}: HTTP 401: no key\nhint: set DISTKV" in capsys.readouterr().err

    assert run("--base-url", "http://127.0.0.1:1")[0] == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: http://127.0.0.1:1: Cannot connect to host")
    assert hint.startswith("hint: is the server running")

    assert run("--base-url", "gpu7:8000")[0] == 2
    assert "base_url=gpu7:8000 must begin with http:// or https://" in capsys.readouterr().err


def test_without_aiohttp_it_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "serve.bench.openai_backend", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    assert run()[0] == 2
    assert "openai needs aiohttp: pip install 'distkv-jax[bench]'" in capsys.readouterr().err


def test_ctrl_c_reports_what_was_measured(
    run: Run, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.interrupt_at = 2
    code, found = run("--num-prompts", "9", "--max-concurrency", "1")

    assert code == 130
    assert (found["completed"], found["num_unfinished"], found["is_partial"]) == (2, 1, True)
    assert capsys.readouterr().out.startswith(
        "PARTIAL: interrupted after 2 requests had ended, 1 were under way and count in nothing\n"
        "============"
    )


def test_a_client_that_is_late_says_so() -> None:
    class Blocking(Scripted):
        async def stream(self, request: Any) -> AsyncIterator[Piece]:
            sum(range(3_000_000))  # holds the event loop for tens of milliseconds
            async for piece in super().stream(request):
                yield piece

    async def measure() -> Measured:
        items = [Item("x", 1, 1)] * 3
        return await Load(Blocking(), "m", items, [0.0, 0.0, 0.0]).run(asyncio.Event())

    measured = asyncio.run(measure())
    # The third one's turn came after both before it.
    assert measured.lag.send_s > 0.02
    assert measured.lag.loop_s > 0.02


def test_our_own_service_is_measured_over_grpc(
    service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saving = f"--save-result --save-detailed --result-dir {tmp_path} --result-filename r".split()
    words = ["--backend", "grpc", "--base-url", service.address, "--ignore-eos", *saving]
    assert main(["bench", "serve", *SMALL, *words]) == 0

    found = json.loads((tmp_path / "r").read_text())
    assert found["output_lens"] == [5] * 4
    assert found["input_lens"] == [6] * 4
    assert found["num_without_usage"] == 0
    assert found["model_id"] == "small"
    assert min(found["ttfts"]) > 0

    # Longer than the model: refused, counted, told.
    assert main(["bench", "serve", *SMALL, *words, "--random-input-len", "5000"]) == 1
    assert "failed 4: INVALID_ARGUMENT: " in capsys.readouterr().err
