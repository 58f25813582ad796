"""`distkv client` says what the server says, in text or as JSON."""

import json
from collections.abc import Callable

import pytest

from distkv_jax.cli.main import main
from distkv_jax.engine.sampling_params import SamplingParams
from tests.serve.running import Running, in_background, wait_submitted

Run = Callable[..., int]


@pytest.fixture
def run(service: Running) -> Run:
    return lambda action, *words: main(["client", action, *words, "--server", service.address])


def test_generate_prints_what_the_engine_gives(
    run: Run, service: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    outputs = service.llm.generate(["hello", "you"], params, use_tqdm=False)
    words = ("hello", "you", "--temperature", "0", "--max-tokens", "6")

    assert run("generate", *words, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outputs"][0]["text"] for line in lines] == [
        output.outputs[0].text for output in outputs
    ]
    assert lines[0]["prompt_token_ids"] == outputs[0].prompt_token_ids

    assert run("generate", *words) == 0
    assert all(output.outputs[0].text in capsys.readouterr().out for output in outputs[:1])


def test_stream_prints_every_sample_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = "-n 2 --seed 3 --max-tokens 5 --ignore-eos --token-ids".split()
    assert run("stream", "5,6", *words) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split()) for line in lines] == [5, 5]


def test_abort_ends_a_stream(
    run: Run, service: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--max-tokens 240 --ignore-eos --token-ids --request-id long".split()
    streaming = in_background(run, "stream", "5", *words)
    wait_submitted(service, 1)

    assert run("abort", "long") == 0
    assert streaming.result(20) == 2
    assert "error: the request was aborted" in capsys.readouterr().err
    assert run("abort", "long") == 2
    assert "error: request_id 'long' is of no live request of yours" in capsys.readouterr().err


def test_info_pool_and_load_are_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for action in ("info", "pool", "load"):
        assert run(action) == 0
        found[action] = json.loads(capsys.readouterr().out)

    assert found["info"]["mesh_tokens"] == 768
    assert found["info"]["default_sampling"]["max_tokens"] == 7
    assert [one["free"] for one in found["pool"]["instances"]] == [48, 48]
    assert found["load"]["is_draining"] is False


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["generate", "x", "-n", "65"], "n=65 must be an integer within 1..64"),
        (["generate", "--token-ids", "500"], "prompt has token id 500, the model has 0..127"),
        (["pool", "--tls-cert", "c"], "tls_cert and tls_key go together, one of them was given"),
        (["load", "--api-key-file", "nowhere"], "[Errno 2] No such file or directory: 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_hint(
    run: Run, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first == f"error: {error}"
    assert hint.startswith("hint: ")


def test_no_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "info", "--server", "127.0.0.1:1", "--max-retries", "0"]) == 2
    assert "hint: is the server running at that address?" in capsys.readouterr().err
