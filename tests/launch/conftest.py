"""Stand-ins for the commands of other machines, which run what they are given on this one."""

import sys
from pathlib import Path

import pytest

from serve.launch import restarts, world

SSH = """#!/bin/sh
printf '%s\\n' "$*" >> "{log}"
while [ "${1#-}" != "$1" ]; do
  if [ "$1" = -o ]; then shift; fi
  shift
done
shift
exec sh -c "$*"
"""
SRUN = """#!{python}
import os, signal, subprocess, sys, threading
command = sys.argv[1:]
while command[0].startswith("--"):
    option = command.pop(0)
    if option.startswith("--ntasks="):
        num_tasks = int(option.partition("=")[2])
with open("{log}", "a") as log:
    print(*sys.argv[1:], file=log)
def show(rank, output):
    for line in output:
        print(f"{rank}: {line}", end="", flush=True)
tasks, readers = [], []
for rank in range(num_tasks):
    place = dict(SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS=str(num_tasks))
    place["SLURM_STEP_NODELIST"] = "localhost"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tasks.append(subprocess.Popen(command, env=os.environ | place, **pipes))
    readers.append(threading.Thread(target=show, args=(rank, tasks[-1].stdout)))
    readers[-1].start()
def hand_on(number, _):
    for task in tasks:
        task.send_signal(number)
signal.signal(signal.SIGTERM, hand_on)
signal.signal(signal.SIGINT, hand_on)
codes = [task.wait() for task in tasks]
for reader in readers:
    reader.join()
sys.exit(max(codes))
"""
# The copy is to every worker's home; each worker has metadata of its own.
GCLOUD = """#!/bin/bash
printf '%s\\n' "$*" >> "{log}"
if [ "$4" = scp ]; then
  for worker in 0 1; do
    mkdir -p "{homes}/$worker"
    cp "$5" "{homes}/$worker/${6#*:}"
  done
  exit
fi
command="${@: -1:1}"
for worker in 0 1; do
  HOME="{homes}/$worker" WORKER=$worker sh -c "${command#--command=}"
done
"""
CURL = """#!/bin/sh
for url; do :; done
case "$url" in
  */agent-worker-number) echo "$WORKER" ;;
  */worker-network-endpoints) echo "unknown:unknown:10.0.0.7,unknown:unknown:10.0.0.8" ;;
  *) exit 22 ;;
esac
"""


class Fakes:
    """A folder at the head of PATH.

    Attributes:
        folder: It.
        log: What the commands were given, a line for each call.
        homes: Homes of the workers of a slice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.homes = folder / "homes"
        for name, text in {"ssh": SSH, "srun": SRUN, "gcloud": GCLOUD, "curl": CURL}.items():
            self.add(name, text)

    def add(self, name: str, text: str) -> Path:
        """Write a command."""
        path = self.folder / name
        for mark, value in (
            ("{log}", self.log),
            ("{homes}", self.homes),
            ("{python}", sys.executable),
        ):
            text = text.replace(mark, str(value))
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Fakes(folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less before a new start, and for who explains nothing."""
    monkeypatch.setattr(restarts, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(world, "EXPLAIN_S", 0.2)
