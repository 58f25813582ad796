"""Bad input is refused with what was given and what is allowed, before anything changes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import ConfigError, PromptTooLong, QueueFull, RequestError
from distkv_jax.llm import LLM
from tests.llm.engines import GOLDEN, VOCAB, make_llm
from tests.models.builders import copy_checkpoint

SHORT = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """Two instances of 80 slots, fewer than the model's 256 positions; no tokenizer."""
    with make_llm(num_blocks=10, max_num_queued_reqs=3, warm_up=False) as llm:
        yield llm


def num_taken(llm: LLM) -> int:
    return llm.stats().num_prompt_tokens


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "prompt is empty, must have at least 1 token"),
        ("", "prompt is empty, must have at least 1 character"),
        ([[5, -1]], f"prompt has token id -1, the model has 0..{VOCAB - 1}"),
        ([5, VOCAB], f"prompt has token id {VOCAB}, the model has 0..{VOCAB - 1}"),
        (
            "text",
            "the checkpoint has no tokenizer.json: send token ids, or add tokenizer.json to it",
        ),
        (
            {"prompt_tokens": [5]},
            "prompt has keys ['prompt_tokens'], expected one of prompt, prompt_token_ids",
        ),
    ],
)
def test_a_bad_prompt_is_refused_and_nothing_starts(llm: LLM, prompt: Any, message: str) -> None:
    before = num_taken(llm)

    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        llm.generate(prompt, SHORT, use_tqdm=False)
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        next(llm.stream(prompt[0] if prompt == [[]] or prompt == [[5, -1]] else prompt, SHORT))

    assert num_taken(llm) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 65}, "n=65 must be an integer within 1..64"),
        ({"n": 0}, "n=0 must be an integer within 1..64"),
        ({"logprobs": 21}, "logprobs=21 must be an integer within 0..20 or None"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 must be an integer within 0..20 or None"),
        ({"max_tokens": -1}, "max_tokens=-1 must be an integer within 1..2147483647 or None"),
        ({"max_tokens": 0}, "max_tokens=0 must be an integer within 1..2147483647 or None"),
        ({"temprature": 1}, "unknown sampling parameters: temprature; known: n, presence_penalty"),
    ],
)
def test_a_bad_sampling_parameter_is_refused_at_birth(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stop_token_ids": [VOCAB]},
            f"stop_token_ids has token id {VOCAB}, the model has 0..{VOCAB - 1}",
        ),
        ({"stop": "a"}, "the checkpoint has no tokenizer.json: send token ids"),
        ({"bad_words": ["a"]}, "the checkpoint has no tokenizer.json: send token ids"),
    ],
)
def test_a_sampling_parameter_that_the_model_lacks_is_refused(
    llm: LLM, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        llm.generate([5], SamplingParams(**settings), use_tqdm=False)


def test_a_prompt_longer_than_the_mesh_is_refused_with_the_numbers(llm: LLM) -> None:
    message = (
        "prompt of 170 tokens with max_tokens=2 needs 171 KV slots, "
        "2 instances together hold 160 for one request"
    )
    with pytest.raises(PromptTooLong, match=message) as caught:
        llm.generate([5] * 170, SHORT, use_tqdm=False)

    assert (caught.value.given, caught.value.limit) == (171, 160)


def test_a_prompt_longer_than_the_model_is_refused_with_the_numbers(llm: LLM) -> None:
    message = "prompt has 256 tokens, the model's limit is 256 with at least 1 generated token"

    with pytest.raises(PromptTooLong, match=message) as caught:
        llm.generate([5] * 256, SHORT, use_tqdm=False)

    assert (caught.value.given, caught.value.limit) == (256, 255)


def test_a_bad_prompt_of_several_is_named_by_its_place_and_none_is_started(llm: LLM) -> None:
    before = num_taken(llm)

    with pytest.raises(RequestError, match="token id 999") as caught:
        llm.generate([[5], [6, 999], [7]], SHORT, use_tqdm=False)

    assert caught.value.__notes__ == ["in prompt 1 of 3; none was started"]
    assert num_taken(llm) == before
    outputs = llm.generate([[5], [6], [7]], SHORT, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2] * 3


def test_a_bad_parameter_of_several_is_named_by_its_place(llm: LLM) -> None:
    params = [SHORT, SHORT, SamplingParams(bad_words=["a"])]

    with pytest.raises(RequestError, match="has no tokenizer.json") as caught:
        llm.generate([[5], [6], [7]], params, use_tqdm=False)

    assert caught.value.__notes__ == ["in prompt 2 of 3; none was started"]


def test_lists_must_match(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 sampling_params for 3 prompts"):
        llm.generate([[5], [6], [7]], [SHORT, SHORT], use_tqdm=False)
    with pytest.raises(RequestError, match="1 priorities for 3 prompts"):
        llm.generate([[5], [6], [7]], SHORT, priority=[0], use_tqdm=False)


def test_more_than_the_queue_takes_are_refused_together(llm: LLM) -> None:
    before = num_taken(llm)

    with pytest.raises(QueueFull, match="4 requests behind 0 waiting, limit 3"):
        llm.generate([[5]] * 4, SHORT, use_tqdm=False)

    assert num_taken(llm) == before
    assert len(llm.generate([[5]] * 3, SHORT, use_tqdm=False)) == 3


def test_a_name_in_use_is_refused(llm: LLM) -> None:
    twice = [
        Request(request_id="mine", prompt_token_ids=(token,), params=SHORT) for token in (5, 6)
    ]

    with pytest.raises(RequestError, match="request_id 'mine' is in use by a live request"):
        llm._thread.submit(twice, lambda group: None)


def open_llm(model: Path = GOLDEN / "llama_mha", **settings: Any) -> LLM:
    return LLM(model, **settings)


def write_mesh(folder: Path, instance: int, tensor: int) -> Path:
    file = folder / "mine.toml"
    file.write_text(
        f'platform = "cpu"\nsimulated = true\naxes = {{ instance = {instance}, tensor = {tensor} }}'
    )
    return file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seqs": 4}, "unknown arguments max_seqs, known: block_size, num_blocks, "),
        ({"block_size": "8"}, "block_size='8' must be of type int"),
        ({"block_size": 12}, "block_size=12 must be a power of two"),
        ({"num_blocks": 1.5}, "num_blocks=1.5 must be of type int"),
        ({"num_blocks": 0}, "num_blocks=0 must be at least 1 or None"),
        ({"num_blocks": True}, "num_blocks=True must be of type int"),
        ({"pooling": 1}, "pooling=1 must be of type bool"),
        ({"host_blocks": -1}, "host_blocks=-1 must be at least 0"),
        ({"max_num_seqs": 0}, "max_num_seqs=0 must be at least 1"),
        ({"max_num_seqs": None}, "max_num_seqs=None must be of type int"),
        ({"max_step_failures": -1}, "max_step_failures=-1 must be at least 0"),
        ({"device_memory_fraction": 1.1}, "device_memory_fraction=1.1 must be within (0, 1]"),
        ({"device_memory_fraction": float("nan")}, "device_memory_fraction=nan must be within"),
        ({"placement": "near"}, "placement='near' must be one of home, round_robin, random"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy='lifo' must be one of fcfs, priority"),
        ({"lend_cap": -1}, "lend_cap=-1 must be at least 0 or None"),
        ({"micro_attention": 5}, "micro_attention=5 must be of type str"),
        ({"dtype": "float8"}, "dtype='float8' must be one of auto, float32, bfloat16, float16"),
        ({"mesh": "cpu-9"}, "unknown mesh 'cpu-9'"),
        ({"max_model_len": 257}, "max_model_len=257 must be at most the model's 256"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        open_llm(**settings)


@pytest.mark.parametrize(
    ("instance", "tensor", "message"),
    [
        (16, 1, "mesh mine needs 16 cpu devices, JAX has 8"),
        (1, 3, "q_heads=4 must be a multiple of tensor=3"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_or_the_heads_is_refused(
    tmp_path: Path, instance: int, tensor: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        open_llm(mesh=write_mesh(tmp_path, instance, tensor))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def overwrite_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, overwrite_header, empty])
def test_damaged_weights_are_refused_by_file(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = copy_checkpoint(tmp_path / "model")
    damage(folder / "model.safetensors")

    with pytest.raises(ConfigError, match=r"model/model\.safetensors is damaged: "):
        open_llm(folder)


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no config.json"):
        open_llm(tmp_path)
    with pytest.raises(
        ConfigError, match="model 'nowhere' is not a folder and not one of the pack"
    ):
        open_llm(Path("nowhere"))
