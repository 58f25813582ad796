"""The `LLM` that a command line describes."""

import argparse

from distkv_jax.cli.arguments import given_fields
from distkv_jax.engine.config import EngineConfig
from distkv_jax.llm import LLM


def open_llm(args: argparse.Namespace) -> LLM:
    """Load the model; a flag that was not given leaves the default to `LLM`.

    Raises:
        ConfigError: As `LLM`.
    """
    named = {name: value for name, value in vars(args).items() if name in ("mesh", "dtype")}
    if "model" in args:
        named["model"] = args.model
    return LLM(**named, show_progress=not args.quiet, **given_fields(args, EngineConfig))
