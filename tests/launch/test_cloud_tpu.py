"""The script for a Cloud TPU slice starts every worker with its own rank and one secret."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distkv_jax.cli.main import main
from tests.launch.conftest import Fakes

# In place of Python on a worker: says what it was given, and what is in its token's file.
WORKER = """#!{python}
import json, os, sys
file = sys.argv[-1]
token, mode = open(file).read(), os.stat(file).st_mode & 0o777
print(json.dumps(dict(words=sys.argv[1:], token=token, mode=mode, cwd=os.getcwd())))
"""


def test_every_worker_knows_its_place(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = fakes.add("worker-python", WORKER)
    folder = tmp_path / "it's here"
    folder.mkdir()
    where = ("--zone", "us-west4-a", "--project", "me", "--python", str(python))
    where = (*where, "--folder", str(folder))
    words = ("it's a model; $HOME", "--mesh", "mesh.toml")
    assert main(["launch", "--cloud-tpu", "my-slice", "--hosts", "2", *where, *words]) == 0
    script = tmp_path / "start.sh"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", script], check=True)

    ended = subprocess.run(["bash", script], check=True, capture_output=True, text=True)

    workers = [json.loads(line) for line in ended.stdout.splitlines()]
    for rank, worker in enumerate(workers):
        code, verb, *given = worker["words"][1:]
        assert code == "-c"
        assert "from distkv_jax.cli import main" in verb
        assert given[:-1] == [
            *("serve", *words, "--coordinator", "10.0.0.7:50061", "--num-hosts", "2"),
            *("--host-rank", str(rank), "--join-token-file"),
        ]
        assert worker["mode"] == 0o600
        assert worker["cwd"] == str(folder)
    assert len(workers) == 2
    (token,) = {worker["token"] for worker in workers}
    assert re.fullmatch("[0-9a-f]{64}", token)
    log = fakes.log.read_text()
    assert token not in log
    assert shlex.split(log.splitlines()[0])[-3:] == [
        *("--worker=all", "--zone=us-west4-a", "--project=me"),
    ]
    # Nothing secret is left, neither at the workers nor here.
    assert not list(fakes.homes.rglob(".distkv-join-token"))
    local = shlex.split(log.splitlines()[0])[4]
    assert not Path(local).exists()


def test_a_worker_without_metadata_does_not_start(
    fakes: Fakes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fakes.add("curl", "#!/bin/sh\nexit 22\n")
    assert main(["launch", "--cloud-tpu", "s", "--hosts", "2", "--python", sys.executable]) == 0

    ended = subprocess.run(["bash", "-c", capsys.readouterr().out], capture_output=True, text=True)

    assert ended.returncode == 22
    assert not list(fakes.homes.rglob(".distkv-join-token"))
