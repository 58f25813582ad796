"""Public traces are read as they are published, and what is wrong in a file is told by line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distkv_jax.errors import ConfigError
from serve.bench.datasets import make_workload
from serve.bench.measure import times_of
from serve.bench.settings import BenchSettings
from serve.bench.sharegpt_file import is_usual
from serve.bench.vocabulary import Vocabulary, read_tokenizer
from serve.bench.workload import Item, Workload

SAMPLES = Path(__file__).parent / "samples"
FILES = {
    "sharegpt": "sharegpt.json",
    "mooncake": "mooncake.jsonl",
    "burstgpt": "burstgpt.csv",
    "azure": "azure.csv",
}


def make(name: str, *, vocabulary: Vocabulary | None = None, **given: Any) -> Workload:
    path = str(SAMPLES / FILES[name]) if name in FILES else None
    settings = BenchSettings(**({"dataset_name": name, "dataset_path": path} | given))
    return make_workload(settings, vocabulary or Vocabulary(1000))


def ids_of(item: Item) -> list[int]:
    assert not isinstance(item.prompt, str)
    return item.prompt.tolist()


def lengths_of(workload: Workload) -> list[tuple[int, int]]:
    assert all(len(item.prompt) == item.prompt_tokens for item in workload.items)
    return [(item.prompt_tokens, item.output_tokens) for item in workload.items]


def test_random_prompts_share_the_prefix_only() -> None:
    given: dict[str, Any] = {"random_input_len": 20, "random_output_len": 7, "random_prefix_len": 5}
    items = make("random", num_prompts=4, **given).items

    assert lengths_of(Workload(items, [])) == [(25, 7)] * 4
    assert len({tuple(ids_of(item)[:5]) for item in items}) == 1
    assert len({tuple(ids_of(item)[5:]) for item in items}) == 4


def test_random_lengths_are_within_the_ratio() -> None:
    given: dict[str, Any] = {
        "random_input_len": 10,
        "random_output_len": 2,
        "random_range_ratio": 0.5,
    }
    lengths = lengths_of(make("random", num_prompts=300, **given))

    assert {prompt for prompt, _ in lengths} == set(range(5, 16))
    assert {output for _, output in lengths} == {1, 2, 3}


def test_the_seed_decides_prompts() -> None:
    first, same, other = (
        ids_of(make("random", num_prompts=1, seed=seed).items[0]) for seed in (1, 1, 2)
    )

    assert first == same != other


def test_mooncake_blocks_of_one_name_have_the_same_tokens() -> None:
    workload = make("mooncake", time_scale=0.5)
    first, second, third = map(ids_of, workload.items)

    assert lengths_of(workload) == [(1100, 5), (600, 4), (1030, 3)]
    assert first[:1024] == third[:1024]
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]
    # Six tokens that no block of the third one covers.
    assert first[1024:1030] != third[1024:]
    # Milliseconds from the first one on, at half the pace.
    assert [item.arrival_s for item in workload.items] == pytest.approx([0.0, 0.0, 1.526])
    assert workload.notes == ["the trace has 3 requests, 1000 were asked for"]


def test_burstgpt_leaves_out_failed_calls() -> None:
    workload = make("burstgpt", num_prompts=2)

    assert lengths_of(workload) == [(472, 18), (417, 276)]
    assert [item.arrival_s for item in workload.items] == [0.0, 113.0]
    assert workload.notes == ["1 rows of the trace without a prompt or an answer are left out"]


def test_azure_is_sorted_by_its_dates() -> None:
    workload = make("azure", num_prompts=3)

    assert lengths_of(workload) == [(374, 44), (396, 109), (8, 1)]
    times = [item.arrival_s for item in workload.items]
    assert times == pytest.approx([0.0, 4.264435, 6.71941])


def test_a_trace_has_its_own_times_unless_a_rate_is_given() -> None:
    items = make("burstgpt").items
    given: dict[str, Any] = {"dataset_name": "burstgpt", "dataset_path": "x"}

    assert times_of(BenchSettings(**given), items) == [0.0, 113.0]
    even = BenchSettings(**given, request_rate=2.0, burstiness=float("inf"))
    assert times_of(even, items) == [0.5, 1.0]


def test_sharegpt_takes_first_questions_of_usual_length(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary(100, read_tokenizer(str(tokenizer_file)))
    workload = make("sharegpt", vocabulary=vocabulary)
    assert [tuple(item) for item in workload.items] == [("w1 w2 w3 w4 w5", 5, 4, None)]

    # With a length of one's own the recorded answer's does not matter.
    workload = make("sharegpt", vocabulary=vocabulary, sharegpt_output_len=3)
    assert sorted(item.prompt_tokens for item in workload.items) == [4, 5]


@pytest.mark.parametrize(
    ("prompt", "output", "is_kept"),
    [(1024, 1024, True), (1025, 4, False), (1024, 1025, False), (3, 9, False), (9, 3, False)],
)
def test_usual_lengths(prompt: int, output: int, is_kept: bool) -> None:
    assert is_usual(prompt, output, is_recorded=True) is is_kept


def test_chat_gets_texts_of_as_many_tokens(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary(101, read_tokenizer(str(tokenizer_file)))
    workload = make(
        "random", vocabulary=vocabulary, backend="openai-chat", random_input_len=9, num_prompts=2
    )

    for item in workload.items:
        assert isinstance(item.prompt, str)
        assert vocabulary.count(item.prompt) == item.prompt_tokens == 9
        assert "<unk>" not in item.prompt
    assert workload.notes == []


def test_special_tokens_are_never_drawn(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary(101, read_tokenizer(str(tokenizer_file)))

    assert set(vocabulary.draw(np.random.default_rng(0), 5000).tolist()) == set(range(100))


AZURE, BURST = "TIMESTAMP,ContextTokens,GeneratedTokens\n", "Timestamp,Request tokens,"
MOON = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("azure", "TIMESTAMP,Tokens\n", "line 1: columns must include TIMESTAMP, ContextTokens, "),
        ("azure", AZURE + "noon,1,1\n", "line 2: TIMESTAMP='noon' must be a date as 2023-11-16"),
        ("azure", AZURE + "2023-11-16,1\n", "line 2: must have 3 columns"),
        ("azure", AZURE, "has no requests with a prompt and an answer"),
        ("burstgpt", BURST + "Response tokens\n1,2,3\nx,2,3\n", "line 3: Timestamp='x' must be a"),
        ("burstgpt", BURST + "Response tokens\n1,2.5,3\n", "line 2: Request tokens='2.5' must be"),
        ("burstgpt", BURST + "Response tokens\n1,-2,3\n", "a whole number of at least 0"),
        ("burstgpt", BURST + "\n", "missing: Response tokens"),
        ("mooncake", MOON + "{\n", "line 2: not JSON"),
        ("mooncake", "[]\n", "line 1: must be a JSON object"),
        ("mooncake", '{"timestamp": 0, "input_length": 1}\n', "line 1: output_length is missing"),
        ("mooncake", MOON[:-2] + ', "hash_ids": [1.5]}', r"hash_ids=\[1.5\] must be a list of"),
        ("mooncake", MOON.replace("1", "true"), "input_length=True must be a whole number"),
        ("sharegpt", "{", "line 1: not JSON"),
        ("sharegpt", "{}", "must be a JSON list of objects with conversations"),
        ("sharegpt", '[{"items": []}]', "entry 0: must be an object with a list conversations"),
        ("sharegpt", '[{"conversations": [{"from": "a"}, {}]}]', "entry 0: the first two conver"),
        ("sharegpt", "[]", "has no conversation of two turns"),
    ],
)
def test_a_bad_file_is_told_by_line(
    name: str, text: str, complaint: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    vocabulary = Vocabulary(100, read_tokenizer(str(tokenizer_file)))

    with pytest.raises(ConfigError, match=complaint):
        make(name, vocabulary=vocabulary, dataset_path=str(path))


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="dataset sharegpt is text: give --tokenizer"):
        make("sharegpt")
    with pytest.raises(ConfigError, match="backend openai-chat takes texts only: give --tokenizer"):
        make("random", backend="openai-chat")


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a tokenizer.json or a folder with one"):
        read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        read_tokenizer(str(tmp_path))
