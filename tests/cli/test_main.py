"""Bad input is one line that names given and allowed, a hint, and exit code 2; nothing else."""

import shutil
from pathlib import Path

import pytest

from distkv_jax.cli.main import complaint, main
from distkv_jax.errors import DistKVError, InvariantError
from distkv_jax.llm import LLM
from distkv_jax.models.model_folder import find_model
from tests.cli.conftest import Run

LONG = ",".join(["7"] * 300)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Check the form of what was printed, and give the error."""
    printed = capsys.readouterr()
    error, hint = printed.err.splitlines()
    assert printed.out == ""
    assert hint.startswith("hint: ")
    return error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "a", "--temprature", "0"], "unrecognized arguments: --temprature"),
        (["generat"], "argument COMMAND: invalid choice: 'generat'"),
        (["fit", "tiny"], "the following arguments are required: --mesh"),
        (["fit", "tiny", "--mesh", "cpu-2", "--context", "x"], "argument --context: invalid int"),
    ],
)
def test_wrong_flags(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert error_of(capsys).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-n 65", "n=65 must be an integer within 1..64"),
        ("--logprobs 21", "logprobs=21 must be an integer within 0..20 or None"),
        ("--max-tokens -1", "max_tokens=-1 must be an integer within 1..2147483647 or None"),
        ("--temperature -1", "temperature=-1.0 must be a finite number at least 0"),
        ("--block-size 12", "block_size=12 must be a power of two"),
        ("--num-blocks 0", "num_blocks=0 must be at least 1 or None"),
        ("--dtype int8", "dtype='int8' must be one of auto, float32, bfloat16, float16"),
        ("--mesh moon", "unknown mesh 'moon': no such file, known names: auto, a100-4x8"),
        ("--model ./nowhere", "model './nowhere' is not a folder and not one of the packaged"),
        ("--prompt-file nowhere.txt", "[Errno 2] No such file or directory: 'nowhere.txt'"),
        ("--token-ids", "prompt 'hello' must be token ids separated by commas or spaces"),
    ],
)
def test_what_is_wrong_in_itself_is_refused_before_anything_is_loaded(
    flags: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distkv_jax.models.checkpoint.load_weights", None)

    assert main(["generate", "hello", *flags.split()]) == 2
    assert error_of(capsys).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([""], "prompt is empty, must have at least 1 character"),
        (["--token-ids", ""], "prompt is empty, must have at least 1 token"),
        (["--token-ids", "1,2048"], "prompt has token id 2048, the model has 0..2047"),
        (["--token-ids", "-1"], "prompt has token id -1, the model has 0..2047"),
        (
            ["--token-ids", LONG],
            "prompt of 300 tokens with max_tokens=16 needs 315 KV slots, 2 instances together "
            "hold 256 for one request",
        ),
        (
            ["--token-ids", "1,2", LONG, "3"],
            "prompt of 300 tokens with max_tokens=16 needs 315 KV slots, 2 instances together "
            "hold 256 for one request; in prompt 1 of 3; none was started",
        ),
        (
            ["--stream", "--token-ids", "1,2", LONG, "3"],
            "prompt of 300 tokens with max_tokens=16 needs 315 KV slots, 2 instances together "
            "hold 256 for one request; in prompt 1 of 3",
        ),
    ],
)
def test_a_wrong_prompt_starts_nothing(
    run: Run, llm: LLM, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run("generate", *argv) == 2
    assert error_of(capsys) == f"error: {message}"
    assert not any(usage.held for usage in llm.pool().usage)


def load(folder: Path | str, mesh: Path | str = "cpu-2") -> int:
    small = "--num-blocks 2 --block-size 16 --no-warm-up --quiet"
    return main(["generate", "hello", "--model", str(folder), "--mesh", str(mesh), *small.split()])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(find_model("tiny"), tmp_path / "model"))


def test_a_prompt_longer_than_the_model(capsys: pytest.CaptureFixture[str]):
    argv = "generate --token-ids 1,2,3,4,5,6,7,8 --max-model-len 8 --mesh cpu-2 --num-blocks 2"

    assert main([*argv.split(), "--no-warm-up", "--quiet"]) == 2
    assert error_of(capsys).startswith("error: prompt has 8 tokens, the model's limit is 8")


def test_damaged_weights(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    assert load(checkpoint) == 2
    assert f"{weights} is damaged: " in error_of(capsys)


def test_text_without_a_tokenizer(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    (checkpoint / "tokenizer.json").unlink()

    assert load(checkpoint) == 2
    assert error_of(capsys) == (
        "error: the checkpoint has no tokenizer.json: send token ids, or add tokenizer.json to it"
    )


def test_an_unknown_architecture(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))

    assert main(["fit", str(checkpoint), "--mesh", "cpu-2"]) == 2
    assert error_of(capsys) == (
        "error: architecture 'MambaForCausalLM' is not known, known: LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
    )


@pytest.mark.parametrize(
    ("instance", "tensor", "message"),
    [
        (16, 1, "mesh m needs 16 cpu devices, JAX has 8: JAX has already started"),
        (1, 3, "q_heads=8 must be a multiple of tensor=3"),
    ],
)
def test_a_mesh_that_does_not_go_with_devices_or_heads(
    instance: int, tensor: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mesh = tmp_path / "m.toml"
    mesh.write_text(
        'platform = "cpu"\nsimulated = true\n'
        f"axes = {{ instance = {instance}, tensor = {tensor} }}\n"
    )

    assert load("tiny", mesh) == 2
    assert error_of(capsys).startswith(f"error: {message}")


def test_convert_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", "tiny", str(tmp_path)]) == 2
    assert f"error: {tmp_path} exists, convert does not overwrite" in capsys.readouterr().err


def test_a_context_longer_than_the_model(capsys: pytest.CaptureFixture[str]):
    assert main("fit tiny --mesh cpu-2 --context 40000".split()) == 2
    assert error_of(capsys) == "error: context=40000 must be within 1..32768, the model's limit"


def test_a_complaint_is_one_line_with_its_notes():
    error = DistKVError("two\nlines")
    error.add_note("in prompt 3")

    assert complaint(error, "chat").splitlines()[0] == "error: two lines; in prompt 3"
    assert "report it" in complaint(InvariantError("x"), "chat")
