"""`distkv fit`: what context and concurrency a mesh has room for, before anything is loaded."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.capacity import Fit, fit
from distkv_jax.cli.prove import Proof, prove
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.progress import Progress
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import load_mesh_config
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.json_file import read_json
from distkv_jax.models.model_folder import read_config, read_shape, shape_names


def run(args: argparse.Namespace) -> int:
    """Print what fits.

    Raises:
        ConfigError: The model or the mesh is not known, or nothing fits.
    """
    engine = EngineConfig(**given_fields(args, EngineConfig))
    model = read_model(args.model)
    mesh = load_mesh_config(args.mesh)
    capacity = functools.partial(
        fit, model, mesh, engine, dtype=args.dtype, device_memory_gib=args.device_memory_gib
    )
    proof = None
    if args.aot:
        with Progress(is_shown=True) as progress:
            proof = prove(
                model,
                mesh,
                engine,
                dtype=args.dtype,
                capacity=lambda temporaries: capacity(temporaries=temporaries),
                progress=progress.programs,
            )
    found = capacity() if proof is None else proof.fit
    contexts = args.context or default_contexts(found.max_model_len)
    for context in contexts:
        if not 1 <= context <= found.max_model_len:
            raise ConfigError(
                f"context={context} must be within 1..{found.max_model_len}, the model's limit"
            )
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{args.model}: {model.architecture}, {model.num_layers} layers, "
        f"{model.kv_heads} KV heads of {model.head_dim}\n"
        f"{mesh.name}: {mesh.instance} instances of {mesh.tensor} "
        f"{'device' if mesh.tensor == 1 else 'devices'}\n\n"
        f"weights on each device     {gib(found.weight_bytes)}\n"
        f"KV of a token on each      {found.token_bytes:,} bytes\n"
        f"KV pool on each device     {gib(found.instance_tokens * found.token_bytes)}, "
        f"{found.num_blocks:,} blocks of {found.block_size} tokens\n"
    )
    if engine.host_blocks:
        pool_bytes = engine.host_blocks * found.block_size * found.token_bytes * mesh.tensor
        console.print(
            f"KV in host memory          {gib(pool_bytes)} for each instance, "
            f"{engine.host_blocks:,} blocks\n"
        )
    console.print(capacity_table(found, contexts))
    if proof is not None:
        console.print(proof_table(proof))
    return 0


def read_model(model: str) -> ModelConfig:
    """Read the config of a model's or a known shape's name, of a folder, or the file itself.

    Raises:
        ConfigError: There is none, or it is not one we know.
    """
    if model in shape_names():
        return read_shape(model)
    path = Path(model).expanduser()
    return ModelConfig.from_hf(read_json(path)) if path.is_file() else read_config(model)


def default_contexts(max_model_len: int) -> list[int]:
    """Choose contexts to show: the model's longest, and shorter ones."""
    return sorted({max(1, max_model_len // 16), max(1, max_model_len // 4), max_model_len})


def capacity_table(found: Fit, contexts: Sequence[int]) -> Table:
    """Compare one instance, all of them apart, and all of them pooled."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("")
    number = found.num_instances
    for heading in ("one instance", f"{number} apart", f"{number} pooled"):
        table.add_column(heading, justify="right")
    alone, together = found.longest(found.instance_tokens), found.longest(found.mesh_tokens)
    rows = [
        ("KV cache, tokens", found.instance_tokens, found.mesh_tokens, found.mesh_tokens),
        ("longest context, tokens", alone, alone, together),
    ]
    rows += [
        (
            f"requests of {context:,} tokens",
            found.num_blocks // found.blocks_of(context),
            found.num_apart(context),
            found.num_pooled(context),
        )
        for context in contexts
    ]
    for name, *counts in rows:
        table.add_row(name, *(f"{count:,}" for count in counts))
    table.caption = f"the model's limit is {found.max_model_len:,} tokens"
    table.caption_justify = "left"
    return table


def proof_table(proof: Proof) -> Table:
    """Show what the compiler counted for each step, beside what a device has."""
    table = Table(box=None, padding=(1, 3, 0, 0), header_style="bold")
    table.add_column(proof.topology)
    for heading in ("weights and KV", "temporary", "program", "in all"):
        table.add_column(heading, justify="right")
    for step in proof.steps:
        memory = step.memory
        sizes = (memory.arguments, memory.temporaries, memory.program, memory.total)
        table.add_row(step.shape, *(gib(size) for size in sizes))
    table.caption = "memory of one device as its compiler counts it; compiled, not run"
    table.caption_justify = "left"
    return table


def gib(size: int) -> str:
    """Write a size in GiB or MiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
