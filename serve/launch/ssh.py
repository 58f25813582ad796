"""One process on each of several hosts, over the system's ssh: started together, ended together."""

import collections
import contextlib
import secrets
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from distkv_jax.errors import ConfigError
from serve.launch.detect import PORT
from serve.launch.local import GOODBYE_S, LAST_LINES, Process, show, wait
from serve.launch.settings import LaunchSettings

SSH = (
    "ssh",
    "-T",
    # No questions: nobody could answer them for all hosts.
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=30"),
    # A host that is cut off ends its ssh, and that the service.
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=3"),
)
KILL_S = 5.0
"""For ssh to end when its host was told to kill."""


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
    guard = [settings.python, "-u", "-m", "serve.launch.guard", "--grace-s", f"{grace_s:g}", "--"]
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


def launch(commands: Sequence[Sequence[str]], hosts: Sequence[str]) -> int:
    """Start all hosts' processes, show what they say, and wait until they have ended.

    SIGTERM or SIGINT goes to rank 0, which drains; the others end with it. When one dies, all end.

    Returns:
        0 if all ended in order, else the exit code of the one that ended first otherwise; 255
        where it was ssh itself.
    """
    token = secrets.token_hex(32)
    processes: list[Process] = []
    try:
        for rank, words in enumerate(commands):
            processes.append(start(rank, hosts[rank], words, token))
        with signals_to(processes[0]):
            return wait(processes)
    finally:
        for process in processes:
            order(process, "KILL")
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(KILL_S)
            process.popen.kill()
            process.popen.wait()
            process.reader.join()
            assert process.popen.stdin is not None
            with contextlib.suppress(OSError):
                process.popen.stdin.close()


def start(rank: int, host: str, words: Sequence[str], token: str) -> Process:
    """Start an ssh in a group of its own, so that Ctrl-C does not reach it, and send the token."""
    popen = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert popen.stdout is not None
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    label = f"{rank} {host}"
    reader = threading.Thread(target=show, args=(label, popen.stdout, last), daemon=True)
    reader.start()
    process = Process(rank, popen, last, reader)
    order(process, token)
    return process


def order(process: Process, line: str) -> None:
    """Say something to a host's guard, which may be gone."""
    assert process.popen.stdin is not None
    with contextlib.suppress(OSError):
        process.popen.stdin.write(f"{line}\n")
        process.popen.stdin.flush()


@contextlib.contextmanager
def signals_to(leader: Process) -> Iterator[None]:
    """Hand SIGTERM and SIGINT on to rank 0."""

    def hand_on(number: int, _: object) -> None:
        order(leader, signal.Signals(number).name.removeprefix("SIG"))

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def grace_of(drain_grace_s: float) -> float:
    """Say how long a host has to end once its launcher is gone: to drain, and to say goodbye."""
    return drain_grace_s + GOODBYE_S
