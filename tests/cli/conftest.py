"""One loaded model for all tests of the command: loading takes longer than any of them."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from distkv_jax.cli.main import main
from distkv_jax.llm import LLM

Run = Callable[..., int]
"""Runs a command line and gives its exit code."""


@pytest.fixture(scope="package")
def llm() -> Iterator[LLM]:
    """Two instances of 8 blocks of 16 tokens; programs compile when first needed."""
    with LLM(
        "tiny",
        mesh="cpu-2",
        block_size=16,
        num_blocks=8,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        warm_up=False,
    ) as llm:
        yield llm


@pytest.fixture
def run(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`main` whose commands find the model loaded."""
    for command in ("generate", "chat"):
        opened = contextlib.nullcontext(llm)
        monkeypatch.setattr(f"distkv_jax.cli.{command}.open_llm", lambda args, llm=opened: llm)
    return lambda command, *argv: main([command, "--quiet", *argv])
