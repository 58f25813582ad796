"""Processes started over ssh are one service, and their secret is in no command line."""

import shlex
import sys
from pathlib import Path

import pytest

from distkv_jax.cli.main import main
from distkv_jax.errors import ConfigError
from serve.launch import ssh
from serve.launch.settings import LaunchSettings
from tests.launch.conftest import Fakes
from tests.launch.running import LONG, SERVE, command_lines, distkv, launched
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import free_port_pair


def test_two_hosts_serve_until_a_signal_and_drain(fakes: Fakes, tmp_path: Path) -> None:
    model = write_text_checkpoint(tmp_path / "the model")
    coordinator = f"localhost:{free_port_pair()}"
    hosts = ("--ssh", "me@one,two", "--python", sys.executable, "--env", "GREETING=good morning")
    words = distkv("launch", *hosts, str(model), *SERVE, "--coordinator", coordinator)

    with launched(words, tmp_path) as service, service.connect() as client:
        stream = client.stream([5, 6, 7], LONG)
        next(stream)
        # Of this service: others may run on the same machine.
        own = [line for line in command_lines().splitlines() if coordinator in line]
        words = " ".join(own).split()
        files = [word for word in words if word.endswith("/join-token")]
        tokens = {Path(file).read_text().strip() for file in files}
        modes = {Path(file).stat().st_mode & 0o777 for file in files}
        seen = command_lines()
        service.popen.terminate()
        last = list(stream)[-1]
        code = service.end()

    assert code == 0, service.text
    assert last.outputs[0].finish_reason == "length"
    assert len(set(files)) == 2
    assert modes == {0o600}
    (token,) = tokens
    assert len(token) == 64
    assert token not in seen + fakes.log.read_text() + service.text
    assert not any(Path(file).exists() for file in files)
    assert "[0 me@one] stopped, nothing was lost" in service.lines
    assert "[1 two] rank 1 stopped with its leader" in service.lines


def test_dry_run_prints_commands_that_a_shell_takes_apart_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("# two of them\nme@gpu1   # leads\n\ngpu2\n")
    words = ["launch", "--ssh", str(hosts), "--folder", "~/my folder", "--env", "A=b c; $d"]
    words += ["--dry-run", "it's a model", "--mesh", "cpu-2", "--drain-grace-s", "7"]

    assert main(words) == 0

    first, second = map(shlex.split, capsys.readouterr().out.splitlines())
    assert first[0] == second[0] == "ssh"
    assert first[-2] == "me@gpu1"
    assert second[-2] == "gpu2"
    change, _, rest = second[-1].partition(" && exec ")
    assert change == "cd ~/'my folder'"
    assert shlex.split(rest) == [
        *("env", "A=b c; $d", "python3", "-u", "-m", "serve.launch.guard", "--grace-s", "22"),
        *("--", "serve", "it's a model", "--mesh", "cpu-2", "--drain-grace-s", "7"),
        *("--coordinator", "gpu1:50061", "--num-hosts", "2", "--host-rank", "1"),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ssh", "one"], "ssh='one' names 1 host, at least 2 are needed"),
        (["--ssh", "one,-oProxyCommand=x"], "has '-oProxyCommand=x', which is no host"),
        (["--ssh", "a,b", "--hosts", "3"], "hosts=3 but ssh='a,b' names 2"),
        (["--ssh", "a,b,c", "tiny", "--mesh", "v5e-16"], "mesh v5e-16 is for hosts=4, there are 3"),
        (["--ssh", "a,b", "--image", "x"], "--image is for --kubernetes, which was not given"),
        (["--hosts", "2", "--env", "A=b"], "--env is for --ssh or --slurm or --kubernetes or --cl"),
        (["--ssh", "a,b", "--env", "DISTKV_API_KEY=x"], "env has DISTKV_API_KEY: others would"),
        (["--ssh", "a,b", "--env", "A"], "env='A' must be NAME=VALUE"),
        ([], "launch needs --hosts, or --ssh with their names"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *words]) == 2

    assert told in capsys.readouterr().err


def test_a_missing_file_of_hosts_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        ssh.read_hosts("./no-such-file")
    with pytest.raises(ConfigError, match="no variable can be called"):
        LaunchSettings(env=["A-B=c"])
