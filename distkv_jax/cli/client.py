"""`distkv client`: talk to a server from a terminal."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.generate import read_prompts
from distkv_jax.cli.write_text import TextWriter, json_of
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import AsyncClient, Client, ClientSettings


def run(args: argparse.Namespace) -> int:
    """Do what `args.action` names.

    Returns:
        0.

    Raises:
        DistKVError: What the server said, or it cannot be reached.
        OSError: A file cannot be read.
    """
    settings = given_fields(args, ClientSettings)
    if args.action == "generate":
        return generate(args, settings)
    if args.action == "stream":
        return stream(args, settings)
    with Client(**settings) as client:
        match args.action:
            case "attach":
                attach(client, args)
            case "abort":
                client.abort(args.request_id)
            case "info":
                print_message(client.model_info())
            case "pool":
                print_message(client.pool())
            case "load":
                print_message(client.load())
            case "profile":
                print(client.profile(args.seconds))
            case "drain":
                count = client.drain(args.grace_s)
                print(f"{count} requests are being finished", file=sys.stderr)
    return 0


def generate(args: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """Send all prompts at once and print the answers in their order."""
    sampling = given_fields(args, SamplingParams)
    prompts = [as_sent(prompt) for prompt in read_prompts(args)]
    has_headings = len(prompts) * sampling.get("n", 1) > 1
    writer = TextWriter(has_headings=has_headings, shows_ids=args.token_ids)
    outputs = asyncio.run(generate_all(settings, prompts, sampling, args))
    for position, output in enumerate(outputs):
        if args.json:
            print(json.dumps(json_of(output)))
        else:
            writer.write_output(position, output)
    return 0


async def generate_all(
    settings: Mapping[str, Any],
    prompts: Sequence[str | tuple[int, ...]],
    sampling: Mapping[str, object],
    args: argparse.Namespace,
) -> list[RequestOutput]:
    """Send prompts at once; the first error is raised, and leaving cancels the others."""
    async with AsyncClient(**settings) as client:
        calls = [client.generate(prompt, sampling, priority=args.priority) for prompt in prompts]
        return await asyncio.gather(*calls)


def stream(args: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """Print one prompt's first sample as it comes, then the others."""
    sampling = given_fields(args, SamplingParams)
    writer = TextWriter(has_headings=False, shows_ids=args.token_ids)
    with Client(**settings) as client:
        for prompt in read_prompts(args):
            outputs = client.stream(
                as_sent(prompt),
                sampling,
                priority=args.priority,
                request_id=args.request_id,
                durable=args.durable,
            )
            write_outputs(writer, outputs)
    return 0


def attach(client: Client, args: argparse.Namespace) -> None:
    """Print what a durable request gave and gives, from its token `args.offset` on."""
    writer = TextWriter(has_headings=False, shows_ids=args.token_ids)
    write_outputs(writer, client.attach(args.request_id, args.offset))


def write_outputs(writer: TextWriter, outputs: Iterable[RequestOutput]) -> None:
    """Print a stream's first sample as it comes, then the others."""
    num_written, output = 0, None
    for output in outputs:
        if output.outputs:
            num_written = writer.write_new(output.outputs[0], num_written)
    assert output is not None  # a stream that failed has raised
    for sample in output.outputs:
        if sample.index:
            writer.write_new(sample, 0)
        writer.end(sample)


def as_sent(prompt: Any) -> str | tuple[int, ...]:
    """Give a prompt of the command line as the client takes it."""
    return prompt if isinstance(prompt, str) else tuple(prompt)


def print_message(message: Message) -> None:
    """Print a message as JSON, its zeros too."""
    print(json.dumps(plain(message), indent=2))


def plain(value: Any) -> Any:
    """Turn a message into what JSON has; protobuf's own JSON would write counts as strings."""
    if isinstance(value, Message):
        names = [
            field.name
            for field in value.DESCRIPTOR.fields
            if not field.has_presence or value.HasField(field.name)
        ]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value
