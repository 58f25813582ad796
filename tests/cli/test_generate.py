"""`distkv generate` prints what the API gives, in the form that was asked for."""

import io
import json
from pathlib import Path

import pytest

from distkv_jax.cli.main import main
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from tests.cli.conftest import Run

GREEDY = SamplingParams(temperature=0, max_tokens=6)
FLAGS = ("--temperature", "0", "--max-tokens", "6")
PROMPTS = ("In the beginning", "It is a truth")


@pytest.fixture(scope="module")
def texts(llm: LLM) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def test_one_prompt_gives_its_text_alone(
    run: Run, texts: list[str], capsys: pytest.CaptureFixture[str]
):
    assert run("generate", PROMPTS[0], *FLAGS) == 0
    assert capsys.readouterr().out == f"{texts[0]}\n"


def test_several_prompts_have_headings_in_their_order(
    run: Run, texts: list[str], capsys: pytest.CaptureFixture[str]
):
    run("generate", *PROMPTS, *FLAGS)
    first, second = texts

    assert capsys.readouterr().out == (
        f" A  In the beginning\n{first}\n\n B  It is a truth\n{second}\n\n"
    )


def test_stream_prints_the_same_in_the_same_order(run: Run, capsys: pytest.CaptureFixture[str]):
    run("generate", *PROMPTS, *FLAGS)
    whole = capsys.readouterr().out
    run("generate", *PROMPTS, *FLAGS, "--stream")

    assert capsys.readouterr().out == whole


def test_stream_of_samples_prints_each_of_them(run: Run, capsys: pytest.CaptureFixture[str]):
    run("generate", PROMPTS[0], *FLAGS, "--stream", "-n", "2")
    text = capsys.readouterr().out

    assert " A  sample 0 In the beginning\n" in text
    assert " A  sample 1 In the beginning\n" in text


def test_json_is_one_object_a_line_with_everything(
    run: Run, texts: list[str], capsys: pytest.CaptureFixture[str]
):
    run("generate", *PROMPTS, *FLAGS, "--json", "--logprobs", "1")
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [one["prompt"] for one in objects] == list(PROMPTS)
    assert [one["outputs"][0]["text"] for one in objects] == texts
    assert objects[0]["metrics"]["latency_s"] >= objects[0]["metrics"]["time_to_first_token_s"] >= 0
    assert len(objects[0]["outputs"][0]["logprobs"]) == 6
    assert objects[0]["instances_used"] and objects[0]["remote_kv_tokens"] == 0


def test_token_ids_go_in_and_come_out(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    (output,) = llm.generate([[3, 5, 6]], GREEDY, use_tqdm=False)
    run("generate", "3,5 6", "--token-ids", *FLAGS)

    assert capsys.readouterr().out.split() == [str(token) for token in output.outputs[0].token_ids]


def test_prompts_come_from_files_and_standard_input(
    run: Run,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    path = tmp_path / "prompt.txt"
    path.write_text(f"{PROMPTS[0]}\n")
    run("generate", "--prompt-file", str(path), *FLAGS)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPTS[0]}\n"))
    run("generate", *FLAGS)

    assert capsys.readouterr().out == f"{texts[0]}\n" * 2


def test_logprobs_are_listed_below_the_text(run: Run, capsys: pytest.CaptureFixture[str]):
    run("generate", PROMPTS[0], *FLAGS, "--logprobs", "2")
    lines = capsys.readouterr().out.splitlines()[-6:]

    assert all(line.count("'") == 4 or line.count('"') for line in lines)


def test_many_requests_are_listed_up_to_a_limit(run: Run, capsys: pytest.CaptureFixture[str]):
    run("generate", *["3"] * 23, "--token-ids", "--max-tokens", "1", "--stats")
    lines = capsys.readouterr().err.splitlines()

    assert "and 3 more" in [line.strip() for line in lines]
    assert "and 3 more requests" in lines


def test_stats_end_with_a_picture_of_blocks_on_several_instances(
    capsys: pytest.CaptureFixture[str],
):
    """The whole command, loading included: 200 tokens are more than one instance holds."""
    prompt = ",".join(["7"] * 200)
    settings = "--mesh cpu-2 --block-size 16 --num-blocks 8 --max-num-seqs 4 --no-warm-up"
    code = main(
        ["generate", prompt, "8,9", "--token-ids", *settings.split(), *FLAGS, "--stats"]
        + ["--max-num-batched-tokens", "64"]
    )
    lines = capsys.readouterr().err.splitlines()
    words = [" ".join(line.split()) for line in lines]
    report = lines[words.index("prompt tokens 202") :]
    picture = lines[next(at for at, line in enumerate(lines) if "KV blocks" in line) :]

    assert code == 0
    assert "KV cache size: 128 tokens on one instance, 256 on the mesh" in words
    assert any(line.startswith("generated tokens 12, ") for line in words)
    assert max(map(len, report)) <= 80
    assert picture[2].startswith("instance 0 |") and picture[2].count("A") >= 5
    assert picture[3].startswith("instance 1 |") and picture[3].count("A") >= 5
    assert any(line.startswith("A 13 blocks on 2 instances") for line in picture)
