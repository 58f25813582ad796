"""All processes of a service on this machine: started together, ended together."""

import collections
import contextlib
import dataclasses
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from distkv_jax.errors import ConfigError

LAST_LINES = 20
"""Of a process that died: how much of what it said last is said again."""
GOODBYE_S = 15.0
"""For the processes that are left to end by themselves, before they are killed."""
COMMAND = (
    sys.executable,
    "-u",
    "-c",
    "import sys; from distkv_jax.cli import main; sys.exit(main())",
)


@dataclasses.dataclass(slots=True)
class Process:
    """One that was started.

    Attributes:
        rank: Which.
        popen: It.
        last: What it said last.
        reader: Prints what it says.
    """

    rank: int
    popen: "subprocess.Popen[str]"
    last: "collections.deque[str]"
    reader: threading.Thread


def commands_of(
    serve_args: Sequence[str], *, num_hosts: int, coordinator: str, token_file: str
) -> list[list[str]]:
    """List the command of every rank, `serve` and all after it."""
    world = ["--coordinator", coordinator, "--num-hosts", str(num_hosts)]
    world += ["--join-token-file", token_file]
    return [["serve", *serve_args, *world, "--host-rank", str(rank)] for rank in range(num_hosts)]


def print_commands(serve_args: Sequence[str], num_hosts: int) -> None:
    """Print what would be started."""
    for words in commands_of(
        serve_args, num_hosts=num_hosts, coordinator="127.0.0.1:PORT", token_file="TOKEN_FILE"
    ):
        print(f"distkv {shlex.join(words)}")


def launch(serve_args: Sequence[str], num_hosts: int) -> int:
    """Start all processes, show what they say, and wait until they have ended.

    SIGTERM or SIGINT goes to rank 0, which drains; the others end with it. When one dies, all end.

    Returns:
        0 if all ended in order, else the exit code of the one that ended first otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="distkv-") as folder:
        token_file = Path(folder) / "join-token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32) + "\n")
        commands = commands_of(
            serve_args,
            num_hosts=num_hosts,
            coordinator=f"127.0.0.1:{free_port_pair()}",
            token_file=str(token_file),
        )
        processes: list[Process] = []
        try:
            for rank, words in enumerate(commands):
                processes.append(start(rank, words))
            with signals_to(processes[0]):
                return wait(processes)
        finally:
            for process in processes:
                process.popen.kill()
                process.popen.wait()
                process.reader.join()


def start(rank: int, words: Sequence[str]) -> Process:
    """Start a process in a group of its own, so that Ctrl-C does not reach it."""
    popen = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert popen.stdout is not None
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    reader = threading.Thread(target=show, args=(rank, popen.stdout, last), daemon=True)
    reader.start()
    return Process(rank, popen, last, reader)


def show(name: int | str, output: TextIO, last: "collections.deque[str]") -> None:
    """Print what a process says, with its rank, or its rank and host, before every line."""
    with output:
        for line in output:
            last.append(line.rstrip("\n"))
            print(f"[{name}] {line}", end="", flush=True)


@contextlib.contextmanager
def signals_to(leader: Process) -> Iterator[None]:
    """Hand SIGTERM and SIGINT on to rank 0."""

    def hand_on(number: int, _: object) -> None:
        leader.popen.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait(processes: Sequence[Process]) -> int:
    """Wait until the first one ends, then for the others, but not for ever."""
    first = next_ended(processes)
    code = first.popen.returncode
    deadline = time.monotonic() + GOODBYE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, deadline - time.monotonic()))
    codes = {process.rank: process.popen.poll() for process in processes}
    wrong = {rank: found for rank, found in codes.items() if found != 0}
    if not wrong:
        return 0
    if first.rank == 0 and code == 1:
        return code  # it has said itself that requests were cut off
    blamed = first if code else next(one for one in processes if one.rank in wrong)
    blamed.reader.join(1.0)
    print(f"error: rank {blamed.rank} {how_ended(codes[blamed.rank])}; it said last:")
    for line in blamed.last:
        print(f"  {line}")
    sys.stdout.flush()
    found = codes[blamed.rank]
    return found if found is not None and found > 0 else 1


def next_ended(processes: Sequence[Process]) -> Process:
    """Wait for any of the processes to end."""
    ended = threading.Event()

    def watch(process: Process) -> None:
        process.popen.wait()
        ended.set()

    for process in processes:
        threading.Thread(target=watch, args=(process,), daemon=True).start()
    # In pieces: a signal's handler runs between them.
    while not ended.wait(0.5):
        pass
    return next(one for one in processes if one.popen.poll() is not None)


def how_ended(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return f"did not end within {GOODBYE_S:g} s"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


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
