"""`distkv serve`: a model on the network until a signal stops it."""

import argparse
import asyncio
import itertools
import os
import signal
import sys

import distkv_jax
from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.logs import LogSettings, configure_logs
from distkv_jax.cli.open_llm import open_llm
from distkv_jax.cli.world import Place, follow_leader, lead, world_settings
from distkv_jax.llm import LLM
from serve.journal.requests import check_journal
from serve.server import Server, check_settings
from serve.settings import ServerSettings

DURABLE = "; durable ones that are not done by then go on at the next start"


def run(args: argparse.Namespace) -> int:
    """Serve.

    Returns:
        0 if every accepted request could finish and no block leaked, else 1.

    Raises:
        DistKVError: The model cannot be loaded or the address not be had, or a block leaked.
        OSError: A file of keys or certificates cannot be read.
    """
    settings = ServerSettings(**given_fields(args, ServerSettings))
    configure_logs(LogSettings(**given_fields(args, LogSettings)))
    # Before minutes of loading.
    check_settings(settings)
    world = world_settings(args)
    place = Place(args, world) if world.is_shared else None
    if place is not None and world.rank:
        return follow_leader(place)
    if settings.journal is not None:
        check_journal(settings.journal)
    model = args.model if "model" in args else "tiny"
    opened = open_llm(args) if place is None else lead(place, show_progress=not args.quiet)
    with opened as llm:
        is_clean = asyncio.run(serve(llm, settings, os.path.basename(os.path.normpath(model))))
    outcome = "nothing was lost" if is_clean else "requests were cut off"
    print(f"stopped, {outcome}", file=sys.stderr)
    return 0 if is_clean else 1


async def serve(llm: LLM, settings: ServerSettings, model_name: str) -> bool:
    """Serve until stopped; says whether every accepted request could finish."""
    server = Server(llm, settings, model_name=model_name)
    await server.start()
    loop = asyncio.get_running_loop()
    # A drain that was asked for by a call does not count: only a second signal means hurry.
    signals = itertools.count()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: on_signal(server, is_first=next(signals) == 0))
    safety = "TLS" if settings.has_tls else "no TLS"
    safety += ", client certificates" if settings.tls_client_ca is not None else ""
    safety += ", API keys" if server.has_keys else ", no API keys"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(
        f"distkv {distkv_jax.__version__} serves {settings.served_model_name or model_name} "
        f"by gRPC on {host}:{server.port} ({safety})",
        flush=True,
    )
    if server.http_port is not None:
        scheme = "https" if settings.has_tls else "http"
        address = f"{scheme}://{host}:{server.http_port}"
        print(f"OpenAI's interface on {address}/v1, live page on {address}/", flush=True)
    return await server.wait()


def on_signal(server: Server, *, is_first: bool) -> None:
    """Drain at the first signal; at the next one end everything."""
    if not is_first:
        print("stopping at once", file=sys.stderr)
        server.stop_now()
        return
    print(
        f"draining: up to {server.settings.drain_grace_s:g} s for accepted requests, "
        f"a second signal stops at once{'' if server.durable is None else DURABLE}",
        file=sys.stderr,
    )
    server.drain()
