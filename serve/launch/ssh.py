"""One process on each of several hosts, over the system's ssh."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from distkv_jax.errors import ConfigError
from serve.launch.detect import PORT
from serve.launch.local import guard_words
from serve.launch.settings import LaunchSettings
from serve.launch.supervisor import supervise

SSH = (
    "ssh",
    "-T",
    # No questions: nobody could answer them for all hosts.
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=30"),
    # A host that is cut off ends its ssh, which is how its loss is seen here.
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=3"),
)


def read_hosts(given: str) -> list[str]:
    """Read hosts separated by commas, or from a file with one in each line; the first leads.

    Raises:
        ConfigError: There are fewer than two, or one that ssh would take for an option.
        OSError: The file cannot be read.
    """
    path = Path(given).expanduser()
    if "," not in given and ("/" in given or path.is_file()):
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    else:
        lines = [host.strip() for host in given.split(",")]
    hosts = [host for host in lines if host]
    for host in hosts:
        if host.startswith("-") or any(character.isspace() for character in host):
            raise ConfigError(f"ssh={given!r} has {host!r}, which is no host")
    if len(hosts) < 2:
        raise ConfigError(f"ssh={given!r} names {len(hosts)} host, at least 2 are needed")
    return hosts


def commands_of(
    serve_args: Sequence[str],
    hosts: Sequence[str],
    settings: LaunchSettings,
    *,
    coordinator: str | None,
    grace_s: float,
) -> list[list[str]]:
    """List the command of every host.

    Args:
        serve_args: As after `distkv serve`.
        hosts: As ssh is given them.
        settings: Where and how to start there.
        coordinator: HOST:PORT; None for the name of the first host.
        grace_s: Seconds that a host has to end once this launcher is gone.
    """
    if coordinator is None:
        coordinator = f"{hosts[0].rpartition('@')[2]}:{PORT}"
    world = ["--coordinator", coordinator, "--num-hosts", str(len(hosts))]
    return [
        [
            *SSH,
            host,
            remote_command([*serve_args, *world, "--host-rank", str(rank)], settings, grace_s),
        ]
        for rank, host in enumerate(hosts)
    ]


def remote_command(words: Sequence[str], settings: LaunchSettings, grace_s: float) -> str:
    """Write what a host's shell is given; the token is not in it, it comes by standard input."""
    guard = guard_words(settings.python, grace_s)
    change = "" if settings.folder is None else f"cd {in_home(settings.folder)} && "
    return f"{change}exec {shlex.join([*settings.prefix, *guard, 'serve', *words])}"


def in_home(folder: str) -> str:
    """Quote a folder for a shell, which puts its user's home for a leading `~`."""
    if folder == "~" or folder.startswith("~/"):
        return "~" + (f"/{shlex.quote(folder[2:])}" if folder[2:] else "")
    return shlex.quote(folder)


def print_commands(commands: Sequence[Sequence[str]]) -> None:
    """Print what would be started."""
    for words in commands:
        print(shlex.join(words))


def launch(
    commands: Sequence[Sequence[str]], hosts: Sequence[str], *, grace_s: float, max_restarts: int
) -> int:
    """Start all hosts' processes and keep them up, as `supervise` says.

    Returns:
        Its exit code; 255 where it was ssh itself.
    """
    labels = [f"{rank} {host}" for rank, host in enumerate(hosts)]
    return supervise(lambda: commands, labels, grace_s=grace_s, max_restarts=max_restarts)
