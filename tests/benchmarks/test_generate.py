"""Rates follow from the runs as the peer's do, and a step's bytes are those of the model."""

import sys
import types
from typing import Any

import pytest

from benchmarks.generate import main, summary
from benchmarks.generate_once import bytes_per_step, host_time, make_prompts, step_seconds, work_out
from benchmarks.measure import Machine, Record
from distkv_jax.engine.engine import EngineStats
from distkv_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    q_heads=4,
    kv_heads=2,
    head_dim=2,
    max_model_len=64,
)


def make_record(*runs_s: float) -> Record:
    return Record(
        case="case",
        sizes={"batch": 4, "prompt": 10, "new": 6},
        first_s=1.0,
        compile_s=0.0,
        runs_s=runs_s,
        machine=Machine("cpu: x", 1, 2, "0", "0", "3", "abc"),
    )


def make_output(first: float, finished: float, num_tokens: int) -> Any:
    return types.SimpleNamespace(
        metrics=types.SimpleNamespace(first_token_time=first, finished_time=finished),
        outputs=[types.SimpleNamespace(token_ids=[0] * num_tokens)],
    )


def test_rates_come_from_the_fastest_runs():
    rates = work_out(make_record(3.0, 2.0), 0.4)

    assert rates.prefill_tok_s == 4 * 10 / 2.0
    assert rates.decode_tok_s == pytest.approx(4 / 0.4)
    assert rates.step_ms == pytest.approx(400.0)


def test_decode_begins_when_the_last_prompt_has_its_first_token():
    outputs = [make_output(10.0, 13.0, 6), make_output(11.0, 14.0, 6)]

    assert step_seconds(outputs) == pytest.approx((14.0 - 11.0) / 5)


def test_one_token_has_no_decode_step():
    with pytest.raises(ValueError, match="one token for each prompt has no decode step"):
        step_seconds([make_output(1.0, 1.0, 1)])


def test_step_reads_every_matrix_once_and_each_sequences_kv():
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
    weights = 2 * (attention + 3 * 8 * 16) + 100 * 8
    kv = 3 * 50 * 2 * 2 * 4

    assert bytes_per_step(CONFIG, weight_bytes=2, kv_bytes=2, batch=3, context=50) == 2 * (
        weights + kv
    )


def test_host_time_is_of_the_steps_between():
    before = EngineStats(num_steps=10, host_s=1.0, wait_s=2.0)
    after = EngineStats(num_steps=20, host_s=1.5, wait_s=4.0)

    assert host_time(before, after) == pytest.approx((50.0, 200.0))


def test_prompts_are_repeatable_and_fit_the_vocabulary():
    prompts = make_prompts(2, 30, vocab_size=20)

    assert prompts == make_prompts(2, 30, vocab_size=20)
    assert all(10 <= token < 20 for prompt in prompts for token in prompt)
    assert prompts[0] != prompts[1]


def test_summary_takes_the_first_start_as_cold_and_prints_ratios():
    ours = [
        {"first_token_s": start, "prefill_tok_s": rate, "decode_tok_s": rate}
        for start, rate in ((9.0, 10.0), (3.0, 30.0), (5.0, 20.0))
    ]

    result = summary(ours, [{"prefill_tok_s": 40.0, "decode_tok_s": 10.0}])

    assert result["cold_first_token_s"] == 9.0
    assert result["warm_first_token_s"] == 4.0
    assert result["decode_tok_s"] == 20.0
    assert result["prefill_tok_s_ratio"] == 0.5
    assert result["decode_tok_s_ratio"] == 2.0


def test_peer_takes_turns_with_fresh_processes_of_ours(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    log = tmp_path / "log"
    line = '{"first_token_s": 2.0, "prefill_tok_s": 1.0, "decode_tok_s": 1.0}'

    def program(name: str, extra: str = "") -> str:
        file = tmp_path / f"{name}.py"
        file.write_text(f"{extra}\nopen({str(log)!r}, 'a').write('{name} ')\nprint('{line}')")
        return str(file)

    python = program("ours", "import os; assert os.environ['DISTKV_CACHE_DIR']")
    monkeypatch.setattr("benchmarks.generate.COMMAND", [sys.executable, python])

    main(["--rounds=2", "--peer", f"{sys.executable} {program('peer')}"])

    assert log.read_text() == "ours peer ours peer "
    assert '"decode_tok_s_ratio": 1.0' in capfd.readouterr().out


def test_peer_without_rates_is_named():
    ours = [{"first_token_s": 1.0, "prefill_tok_s": 1.0, "decode_tok_s": 1.0}]

    with pytest.raises(ValueError, match="prefill_tok_s=None in the last line"):
        summary(ours, [{}])
