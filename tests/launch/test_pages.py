"""The pages of operations have command lines that can be copied."""

import re
import shlex
from pathlib import Path

import pytest

from distkv_jax.cli.parser import build_parser

PAGES = Path(__file__).parents[2] / "docs" / "operations"
NAMES = ("one-host", "ssh", "slurm", "kubernetes", "cloud-tpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_parses(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    distkv (.+)", text, re.M)
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        args = build_parser().parse_args(words)
        assert args.command == "launch"
        build_parser().parse_args(["serve", *args.serve])
    assert lines
