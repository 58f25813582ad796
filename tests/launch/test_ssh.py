"""Processes started over ssh live and end together, and their secret is in no command line."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from distkv_jax.cli.main import main
from distkv_jax.errors import ConfigError
from serve.launch import local, ssh
from serve.launch.settings import LaunchSettings
from tests.launch.conftest import Fakes
from tests.launch.running import LONG, ROOT, SERVE, command_lines, distkv, launched
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import free_port_pair, wait_until

# A guard that runs a script in place of `distkv`; RANK is its rank, TOKEN its file.
GUARD = """
import os, sys
sys.path.insert(0, {root!r})
from serve.launch import guard
begin = "import json, os, signal, sys, time; RANK = int(sys.argv[1]); TOKEN = sys.argv[-1]\\n"
guard.COMMAND = (sys.executable, "-u", "-c", begin + {script!r})
code = guard.main(["--grace-s", "2", "--", {rank!r}])
sys.stdout.flush()
os._exit(code)
"""


def guards(script: str, num_hosts: int = 2) -> list[list[str]]:
    return [
        [sys.executable, "-c", GUARD.format(root=str(ROOT), script=script, rank=str(rank))]
        for rank in range(num_hosts)
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


def test_when_one_dies_all_end_and_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(ssh, "KILL_S", 20)
    monkeypatch.setattr(local, "GOODBYE_S", 0.2)
    pid_file = tmp_path / "pid"
    script = f"""
if RANK == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open({str(pid_file)!r}, "w").write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists({str(pid_file)!r}) or not open({str(pid_file)!r}).read():
    time.sleep(0.01)
print("no more blocks")
sys.exit(7)
"""
    assert ssh.launch(guards(script), ["one", "two"]) == 7

    told = capfd.readouterr().out
    assert "[1 two] no more blocks\n" in told
    assert "error: rank 1 ended with exit code 7; it said last:\n  no more blocks\n" in told
    assert not alive(int(pid_file.read_text()))


def test_rank_0_drains_and_all_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    drained = tmp_path / "drained"
    script = f"""
def on_signal(number, _):
    for _ in range(20):
        os.write(1, b"draining\\n")
        time.sleep(0.01)
    if RANK == 0:
        open({str(drained)!r}, "w").close()
        sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
open({str(tmp_path)!r} + f"/{{RANK}}.tmp", "w").write(json.dumps([os.getpid(), TOKEN]))
os.rename({str(tmp_path)!r} + f"/{{RANK}}.tmp", {str(tmp_path)!r} + f"/{{RANK}}.json")
while True:
    os.write(1, b"something to say\\n")
    time.sleep(0.01)
"""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from serve.launch import ssh\n"
    code += f"ssh.launch({guards(script)!r}, ['one', 'two'])"
    files = [tmp_path / f"{rank}.json" for rank in range(2)]

    with launched([sys.executable, "-c", code], tmp_path) as launcher:
        wait_until(lambda: all(file.exists() for file in files), launcher)
        launcher.popen.kill()
        found = [json.loads(file.read_text()) for file in files]
        wait_until(lambda: not any(alive(pid) for pid, _ in found), "processes end")
        wait_until(lambda: not any(Path(token).exists() for _, token in found), "tokens go")
    # Nobody listened to what it said meanwhile.
    assert drained.exists()


def test_a_signal_goes_to_rank_0_alone(tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    script = f"""
def on_signal(number, _):
    print("signal", number, flush=True)
    open({flag!r}, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
print("ready", flush=True)
while not (RANK and os.path.exists({flag!r})):
    time.sleep(0.01)
"""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from serve.launch import ssh\n"
    code += f"sys.exit(ssh.launch({guards(script)!r}, ['one', 'two']))"

    with launched([sys.executable, "-c", code], tmp_path) as launcher:
        wait_until(lambda: launcher.text.count("ready") == 2, launcher)
        os.killpg(launcher.popen.pid, signal.SIGINT)
        assert launcher.end() == 0, launcher.text

    assert [line for line in launcher.lines if "signal" in line] == ["[0 one] signal 2"]


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
