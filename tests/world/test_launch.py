"""Processes that are started together end together, and who died is told."""

import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from distkv_jax.cli.main import main
from serve.launch import local
from tests.world.running import ROOT, wait_until


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Start this instead of a server; RANK is its rank."""
    begin = "import os, signal, sys, time\nRANK = int(sys.argv[-1])\n"
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", begin + text))


def test_dry_run_prints_the_command_of_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--hosts", "2", "--dry-run", "tiny", "--mesh", "cpu-2"]) == 0

    world = "--coordinator 127.0.0.1:PORT --num-hosts 2 --join-token-file TOKEN_FILE"
    assert capsys.readouterr().out.splitlines() == [
        f"distkv serve tiny --mesh cpu-2 {world} --host-rank {rank}" for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hosts", "1"], "hosts=1 must be at least 2"),
        (["--hosts", "2", "tiny", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["launch", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err.count(told) == 1


def test_lines_begin_with_their_rank_and_all_end_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, "print('hello from', RANK)")

    assert local.launch([], 3) == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [f"[{rank}] hello from {rank}" for rank in range(3)]


def test_one_that_dies_is_named_with_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "GOODBYE_S", 0.2)
    script(
        monkeypatch,
        "if RANK == 1:\n  print('no more blocks')\n  sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)",
    )

    assert local.launch([], 2) == 7
    tail = capsys.readouterr().out.partition("error: ")[2]
    assert tail == "rank 1 ended with exit code 7; it said last:\n  no more blocks\n"


def test_one_that_is_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "GOODBYE_S", 0.2)
    script(monkeypatch, "time.sleep(0 if RANK else 600)\nos.kill(os.getpid(), signal.SIGKILL)")

    assert local.launch([], 2) == 1
    assert "error: rank 1 was killed by SIGKILL" in capsys.readouterr().out


def test_a_signal_goes_to_rank_0_alone_and_the_others_end_with_it() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from serve.launch import local
local.COMMAND = (sys.executable, "-c", '''
import os, signal, sys, time
rank, flag = int(sys.argv[-1]), sys.argv[1]
def on_signal(*_):
    print("signal", rank, flush=True)
    open(flag, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
print("ready", rank, flush=True)
while not (rank and os.path.exists(flag)):
    time.sleep(0.01)
''')
local.commands_of = lambda args, **_: [[sys.argv[1], "--host-rank", str(n)] for n in range(2)]
sys.exit(local.launch([], 2))
"""
    with tempfile.TemporaryDirectory() as folder:
        popen = subprocess.Popen(
            [sys.executable, "-c", code, f"{folder}/flag"],
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C reaches a whole group of processes.
            start_new_session=True,
        )
        assert popen.stdout is not None
        lines: list[str] = []
        output = popen.stdout
        reader = threading.Thread(target=lambda: lines.extend(output), daemon=True)
        reader.start()
        wait_until(lambda: sum("ready" in line for line in lines) == 2, "both run")
        os.killpg(popen.pid, signal.SIGINT)

        assert popen.wait(20) == 0
        reader.join(10)
        output.close()
    assert [line for line in lines if "signal" in line] == ["[0] signal 0\n"]
