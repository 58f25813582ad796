"""Help teaches: every command has examples, and the examples are right."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from distkv_jax.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
COMMANDS = ("generate", "chat", "serve", "launch", "client", "bench", "fit", "convert", "meshes")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_command(command: str, capsys: pytest.CaptureFixture[str]):
    assert f"    {command} " in help_of(capsys)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "meshes"])
def test_every_example_of_the_help_is_a_command_line_that_parses(
    command: str, capsys: pytest.CaptureFixture[str]
):
    text = help_of(capsys, command)
    examples = re.findall(r"\bdistkv (.+)", text.partition("example")[2])
    examples = [shlex.split(re.split(r" \| | && ", example)[0]) for example in examples]

    parsed = [build_parser().parse_args(example) for example in examples if example[0] in COMMANDS]
    assert command in {args.command for args in parsed}


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--version"])

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"{project['version']}\n"


def test_stream_and_json_exclude_each_other(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["generate", "--stream", "--json"])

    assert "argument --json: not allowed with argument --stream" in capsys.readouterr().err
