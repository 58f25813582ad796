"""All processes of a service on this machine."""

import contextlib
import shlex
import socket
import sys
from collections.abc import Sequence

from distkv_jax.errors import ConfigError
from serve.launch.supervisor import supervise
from serve.launch.world import GOODBYE_S

COMMAND = (
    sys.executable,
    "-u",
    "-c",
    "import sys; from distkv_jax.cli import main; sys.exit(main())",
)


def commands_of(serve_args: Sequence[str], *, num_hosts: int, coordinator: str) -> list[list[str]]:
    """List the command of every rank, `serve` and all after it but the token's file."""
    world = ["--coordinator", coordinator, "--num-hosts", str(num_hosts)]
    return [["serve", *serve_args, *world, "--host-rank", str(rank)] for rank in range(num_hosts)]


def print_commands(serve_args: Sequence[str], num_hosts: int) -> None:
    """Print what would be started."""
    for words in commands_of(serve_args, num_hosts=num_hosts, coordinator="127.0.0.1:PORT"):
        print(f"distkv {shlex.join(words)} --join-token-file TOKEN_FILE")


def launch(serve_args: Sequence[str], num_hosts: int, *, grace_s: float, max_restarts: int) -> int:
    """Start all processes and keep them up, as `supervise` says; gives its exit code."""

    def commands() -> list[list[str]]:
        # Ports of a world that was lost may be in use for a while.
        coordinator = f"127.0.0.1:{free_port_pair()}"
        ranks = commands_of(serve_args, num_hosts=num_hosts, coordinator=coordinator)
        return [[*guard_words(sys.executable, grace_s), *words] for words in ranks]

    labels = [str(rank) for rank in range(num_hosts)]
    return supervise(commands, labels, grace_s=grace_s, max_restarts=max_restarts)


def guard_words(python: str, grace_s: float) -> list[str]:
    """Write the beginning of a command that ends a process when its launcher is gone.

    Args:
        python: With which it runs.
        grace_s: Seconds that the process has to end then.
    """
    return [python, "-u", "-m", "serve.launch.guard", "--grace-s", f"{grace_s:g}", "--"]


def grace_of(drain_grace_s: float) -> float:
    """Say how long a process has to end: to drain, and to say goodbye."""
    return drain_grace_s + GOODBYE_S


def free_port_pair() -> int:
    """Find a port that is free, and the next one too.

    Raises:
        ConfigError: None was found.
    """
    for _ in range(64):
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 1))
                return port
    raise ConfigError("no two free ports in a row were found on this machine")
