"""`distkv generate`: prompts in, their continuations out."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console

from distkv_jax.cli.arguments import given_fields, integers
from distkv_jax.cli.open_llm import open_llm
from distkv_jax.cli.ordered_stream import print_streams
from distkv_jax.cli.report import print_report
from distkv_jax.cli.watch import watch_pool
from distkv_jax.cli.write_text import TextWriter, json_of, name_of
from distkv_jax.engine.prompt import Prompt
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import RequestError

EXAMPLES = (
    "It is a truth universally acknowledged, that",
    "In the beginning",
    "Emma was not sorry to have",
)


def run(args: argparse.Namespace) -> int:
    """Generate for all prompts.

    Returns:
        0, or 1 if an accepted request could not be finished.

    Raises:
        DistKVError: Something given is wrong; nothing was generated.
        OSError: A prompt file cannot be read.
    """
    sampling = given_fields(args, SamplingParams)
    # What is wrong in itself is refused before a model is loaded.
    SamplingParams(**sampling)
    prompts = read_prompts(args)
    with open_llm(args) as llm, contextlib.ExitStack() as watching:
        params = dataclasses.replace(llm.get_default_sampling_params(), **sampling)
        peak = watching.enter_context(watch_pool(llm)) if args.stats else None
        has_headings = len(prompts) * params.n > 1
        writer = TextWriter(has_headings=has_headings, shows_ids=args.token_ids)
        if args.stream:
            outputs = asyncio.run(print_streams(llm, prompts, params, writer))
        else:
            outputs = llm.generate(prompts, params, use_tqdm=not args.quiet)
            for position, output in enumerate(outputs):
                if args.json:
                    print(json.dumps(json_of(output)))
                else:
                    writer.write_output(position, output)
        sys.stdout.flush()
        watching.close()
        if peak is not None:
            names = {output.request_id: name_of(output) for output in outputs}
            print_report(
                Console(stderr=True, highlight=False), llm.stats(), outputs, names, peak.view
            )
    failed = [output for output in outputs if output.error is not None]
    for output in failed:
        print(f"error: {name_of(output)}: {output.error}", file=sys.stderr)
    return 1 if failed else 0


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """Collect the prompts from files and arguments, or where there are none standard input.

    Raises:
        RequestError: A file is not text, or token ids are not numbers.
        OSError: A file cannot be read.
    """
    texts = [*(read_text(path) for path in args.prompt_file), *args.prompts]
    if not texts:
        texts = list(EXAMPLES) if sys.stdin.isatty() else [sys.stdin.read().rstrip("\n")]
    return [read_token_ids(text) for text in texts] if args.token_ids else texts


def read_text(path: Path) -> str:
    """Read a prompt file, without the line break at its end.

    Raises:
        RequestError: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: {error}") from error


def read_token_ids(text: str) -> tuple[int, ...]:
    """Read a prompt of token ids.

    Raises:
        RequestError: Something in it is not an integer.
    """
    try:
        return integers(text) if text.strip() else ()
    except ValueError as error:
        raise RequestError(
            f"prompt {text!r} must be token ids separated by commas or spaces"
        ) from error
