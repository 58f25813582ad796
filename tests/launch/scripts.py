"""Scripts in place of `distkv`, started and supervised for real."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from serve.launch.supervisor import supervise
from tests.launch.running import Launched, launched
from tests.world.running import ROOT

# A guard that runs a script in place of `distkv`.
GUARD = """
import os, sys
sys.path.insert(0, {root!r})
from serve.launch import guard
guard.COMMAND = (sys.executable, "-u", "-c", {script!r})
code = guard.main(["--grace-s", "2", "--", {rank!r}, {folder!r}])
sys.stdout.flush()
os._exit(code)
"""
SCRIPT_BEGIN = """
import json, os, signal, sys, time
RANK, FOLDER, TOKEN = int(sys.argv[1]), sys.argv[2], sys.argv[-1]
def path(name):
    return f"{FOLDER}/{name}"
def has(name):
    return os.path.exists(path(name))
def put(name, value=""):
    with open(path(name + ".tmp"), "w") as file:
        file.write(json.dumps(value))
    os.rename(path(name + ".tmp"), path(name))
def get(name):
    wait(name)
    return json.load(open(path(name)))
def wait(name):
    while not has(name):
        time.sleep(0.005)
def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
def tell(line):
    sys.stderr.write(f"distkv-world: {line}\\n")
def up(may_come_again=True):
    tell("the world is up")
    if may_come_again:
        tell("ranks that are lost may come again")
    put(f"up-{LIFE}")
# Which life of this rank it is, from 1.
LIFE = 1
while has(f"{RANK}-{LIFE}"):
    LIFE += 1
put(f"{RANK}-{LIFE}", os.getpid())
"""
SUPERVISE = """
import signal, sys
sys.path.insert(0, {root!r})
from serve.launch import process, restarts, world
from serve.launch.supervisor import supervise
{settings}
sys.exit(supervise(lambda: {commands!r}, ["0", "1"], grace_s={grace_s}, max_restarts=3))
"""
# Follows until rank 0 has put `done`.
FOLLOW = """
if RANK:
    wait("done")
    sys.exit(0)
"""


def guards(script: str, folder: Path, num_hosts: int = 2) -> list[list[str]]:
    """Commands that run a script for every rank, after `SCRIPT_BEGIN`."""
    given = dict(root=str(ROOT), script=SCRIPT_BEGIN + script, folder=str(folder))
    return [
        [sys.executable, "-c", GUARD.format(rank=str(rank), **given)] for rank in range(num_hosts)
    ]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run(script: str, folder: Path, *, max_restarts: int = 10, grace_s: float = 20) -> int:
    commands = guards(script, folder)
    return supervise(lambda: commands, ["0", "1"], grace_s=grace_s, max_restarts=max_restarts)


def launcher_code(script: str, folder: Path, settings: str = "", grace_s: float = 20) -> str:
    commands = guards(script, folder)
    return SUPERVISE.format(root=str(ROOT), settings=settings, commands=commands, grace_s=grace_s)


@contextlib.contextmanager
def supervised(
    script: str, folder: Path, settings: str = "", grace_s: float = 20
) -> Iterator[Launched]:
    """Run a launcher as a process, which can be sent signals."""
    words = [sys.executable, "-c", launcher_code(script, folder, settings, grace_s)]
    with launched(words, folder) as launcher:
        yield launcher


def pid_of(folder: Path, rank: int, life: int) -> int:
    return int(json.loads((folder / f"{rank}-{life}").read_text()))
