"""The script for Slurm is one that bash runs, and its tasks are a service."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distkv_jax.cli.main import main
from tests.launch.conftest import Fakes
from tests.launch.running import LONG, ROOT, SERVE, command_lines, launched
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import free_port_pair, wait_until


def script_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["launch", "--slurm", "--hosts", "2", *words]) == 0
    return capsys.readouterr().out


def write(folder: Path, text: str) -> Path:
    path = folder / "job.sbatch"
    path.write_text(text)
    subprocess.run(["bash", "-n", path], check=True)
    return path


def test_tasks_serve_until_slurm_sends_its_signal(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_text_checkpoint(tmp_path / "the model")
    coordinator = f"localhost:{free_port_pair()}"
    where = ("--python", sys.executable, "--env", f"PYTHONPATH={ROOT}", "--folder", str(tmp_path))
    text = script_of(capsys, *where, str(model), *SERVE, "--coordinator", coordinator)

    with (
        launched(["bash", str(write(tmp_path, text))], tmp_path) as job,
        job.connect() as client,
    ):
        stream = client.stream([5, 6, 7], LONG)
        next(stream)
        (token_file,) = tmp_path.glob(".distkv-join.*")
        token, mode = token_file.read_text(), token_file.stat().st_mode & 0o777
        seen = command_lines()
        job.popen.terminate()
        last = list(stream)[-1]
        code = job.end()

    assert code == 0, job.text
    assert last.outputs[0].finish_reason == "length"
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert mode == 0o600
    assert token not in seen + fakes.log.read_text() + job.text
    assert not token_file.exists()
    assert "0: stopped, nothing was lost" in job.lines
    assert "1: rank 1 stopped with its leader" in job.lines


def test_what_a_task_ends_with_the_job_ends_with(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = fakes.add(
        "fails", '#!/bin/sh\necho "$SLURM_PROCID of $*"\nexit $((SLURM_PROCID * 7))\n'
    )
    text = script_of(capsys, "--python", str(fails), "it's $HOME", "--mesh", "cpu-2")

    with launched(["bash", str(write(tmp_path, text))], tmp_path) as job:
        wait_until(lambda: job.popen.poll() is not None, job)
        assert job.end() == 7

    assert job.text.count(" serve it's $HOME --mesh cpu-2 --launcher slurm --join-token-file ") == 2
    assert not list(tmp_path.glob(".distkv-join.*"))


def test_the_head_asks_for_one_task_on_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    text = script_of(
        capsys,
        *("--gpus-per-node", "8", "--cpus-per-node", "48", "--partition", "gpu", "--account", "me"),
        *("--time-limit", "1-00:00:00", "--name", "llm", "tiny", "--drain-grace-s", "60"),
    )

    assert re.findall("#SBATCH --(.+)", text) == [
        *("job-name=llm", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=48"),
        *("partition=gpu", "account=me", "time=1-00:00:00", "output=llm-%j.log"),
        *("signal=B:TERM@75", "no-kill"),
    ]
    (srun,) = re.findall(r"^srun (.+\n.+\n.+)\\$", text, re.M)
    assert srun.replace("\\", "").split() == [
        *("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--label"),
        # What is lost does not end what rank 0 goes on with.
        *("--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=48"),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--partition", "a\n#SBATCH --wrap=x"],
            "partition='a\\n#SBATCH --wrap=x' must be letters",
        ),
        (["--gpus-per-node", "0"], "gpus_per_node=0 must be at least 1"),
        (["--name", "A b"], "name='A b' must be 1 to 40 of a-z"),
    ],
)
def test_what_would_break_the_head_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--slurm", "--hosts", "2", *words, "tiny"]) == 2

    assert told in capsys.readouterr().err
