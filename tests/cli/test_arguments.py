"""Flags are the dataclass fields: all of them, with their defaults and their texts."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from distkv_jax.cli.arguments import Parser, add_fields, attribute_texts, given_fields
from distkv_jax.cli.parser import build_parser
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.sampling_params import MAX_N, SamplingParams
from distkv_jax.llm import LLM
from serve.client_settings import ClientSettings
from serve.settings import ServerSettings

LIMIT = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All kinds of fields.

    Attributes:
        count: A number of things,
            up to `LIMIT`; None as `share`.
        share: A share.
        is_on: A switch.
        mode: One of two.
        words: Several texts.
        word: One text or several.
        ids: Several numbers.
        table: Numbers by number.
    """

    count: int | None = 3
    share: float = 0.5
    is_on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    words: Sequence[str] | None = None
    word: str | Sequence[str] | None = None
    ids: Sequence[int] | None = None
    table: Mapping[int, float] | None = None


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="prog")
    add_fields(parser, "settings", Settings)
    return parser


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--count", "5"], "count", 5),
        (["--count", "none"], "count", None),
        (["--share", "0.25"], "share", 0.25),
        (["--no-is-on"], "is_on", False),
        (["--mode", "slow"], "mode", "slow"),
        (["--words", "a", "--words", "b c"], "words", ["a", "b c"]),
        (["--word", "a"], "word", ["a"]),
        (["--ids", "1,2 3"], "ids", (1, 2, 3)),
        (["--table", "5=-1.5,6=2"], "table", {5: -1.5, 6: 2.0}),
    ],
)
def test_every_kind_of_field_can_be_given(
    parser: Parser, words: list[str], field: str, value: object
):
    assert given_fields(parser.parse_args(words), Settings) == {field: value}


def test_what_is_not_given_is_left_to_the_dataclass(parser: Parser):
    assert given_fields(parser.parse_args([]), Settings) == {}


def test_help_has_each_default_and_text(parser: Parser):
    text = " ".join(parser.format_help().split())

    assert "a number of things, up to 7; none as --share (default: 3)" in text
    assert "a switch (default: yes)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "x"], "argument --count: invalid int or 'none' value: 'x'"),
        (["--share", "none"], "argument --share: invalid float value: 'none'"),
        (["--mode", "odd"], "argument --mode: invalid choice: 'odd'"),
        (["--ids", "1,a"], "argument --ids: invalid integers value: '1,a'"),
        (["--table", "5"], "argument --table: invalid biases value: '5'"),
        (["--coun", "5"], "unrecognized arguments: --coun 5"),
    ],
)
def test_a_wrong_flag_is_one_line_and_a_hint(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    parser = Parser(prog="prog", allow_abbrev=False)
    add_fields(parser, "settings", Settings)

    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    error, hint = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert error.startswith(f"error: {message}")
    assert hint == "hint: `prog --help` lists every setting"


@pytest.mark.parametrize("settings", [EngineConfig, SamplingParams, ServerSettings, ClientSettings])
def test_every_field_of_the_api_is_described(settings: type):
    texts = attribute_texts(settings)

    assert [name for name, text in texts.items() if not text] == []
    assert [name for name, text in texts.items() if "`" in text] == []


def test_generate_takes_every_field_of_the_api():
    args = build_parser().parse_args(
        "generate --engine-seed 1 --seed 2 -n 3 --max-num-seqs 4 --stop a --no-pooling".split()
    )

    assert given_fields(args, EngineConfig) == {"seed": 1, "max_num_seqs": 4, "pooling": False}
    assert given_fields(args, SamplingParams) == {"seed": 2, "n": 3, "stop": ["a"]}


def test_defaults_of_the_model_flags_are_those_of_the_api(capsys: pytest.CaptureFixture[str]):
    defaults = inspect.signature(LLM).parameters
    with pytest.raises(SystemExit):
        build_parser().parse_args(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert defaults["model"].default == "tiny" and "tiny, the model that ships" in text
    assert defaults["mesh"].default == "auto" and "or auto (the default)" in text
    assert defaults["dtype"].default == "auto" and "float16, or auto (the default)" in text
    assert f"up to {MAX_N} (default: 1)" in text


def test_a_model_flag_that_is_not_given_is_not_in_the_arguments():
    assert "model" not in build_parser().parse_args(["generate"])
