"""What was started together ends together, in every state, and who died is told.

Scripts stand for `distkv`; guards, pipes and signals are real.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import FOLLOW, is_alive, launcher_code, pid_of, run, supervised
from tests.world.running import children_of, wait_until

pytestmark = pytest.mark.usefixtures("quick")


def test_lines_begin_with_their_rank_and_all_end_well(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("print('hello from', RANK)", tmp_path) == 0

    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == [f"[{rank}] hello from {rank}" for rank in (0, 1)]


STATES = {
    # A script, what is seen when the signal is due, the exit code.
    "starting": (
        "wait('1-1')\nprint('loading', flush=True)\ntime.sleep(600)",
        "[0] loading",
        128 + signal.SIGTERM,
    ),
    "a rank is lost": (
        """
if RANK:
    wait("up-1")
    sys.exit(7)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
up()
time.sleep(600)
""",
        "rank 1 ended with exit code 7, it is started again in 30 s",
        0,
    ),
    "the world is lost": (
        "if RANK == 0:\n    up()\n    wait('1-1')\n    sys.exit(3)\ntime.sleep(600)",
        "rank 0 ended with exit code 3, the service is started again in 30 s (1 of 3); "
        "it said last:",
        3,
    ),
}


def test_before_the_world_is_up_the_end_of_one_is_that_of_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # What others than rank 0 say counts for nothing.
    script = """
if RANK:
    up()
    wait("0-1")
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
    assert run(script, tmp_path) == 7

    told = capfd.readouterr().out
    assert "error: rank 1 ended with exit code 7; it said last:\n  distkv-world: the wor" in told
    assert "again in" not in told
    assert not is_alive(pid_of(tmp_path, 0, 1))


@pytest.mark.parametrize("state", STATES)
def test_a_signal_ends_the_service_in_every_state(state: str, tmp_path: Path) -> None:
    script, seen, code = STATES[state]
    with supervised(script, tmp_path, "restarts.FIRST_WAIT_S = 30") as launcher:
        wait_until(lambda: seen in launcher.lines, launcher)
        launcher.popen.terminate()
        assert launcher.end() == code, launcher.text

    assert "error" not in launcher.text
    for rank in (0, 1):
        assert not (tmp_path / f"{rank}-2").exists()
        assert not is_alive(pid_of(tmp_path, rank, 1))


def test_what_dies_during_the_drain_is_not_started_again(tmp_path: Path) -> None:
    script = """
def drain(*_):
    put("draining")
    while is_alive(get("1-1")):
        time.sleep(0.005)
    time.sleep(0.2)  # ten times the first wait
    sys.exit(0)
if RANK:
    wait("draining")
    sys.exit(7)
signal.signal(signal.SIGTERM, drain)
up()
time.sleep(600)
"""
    with supervised(script, tmp_path, "restarts.FIRST_WAIT_S = 0.02") as launcher:
        wait_until(lambda: (tmp_path / "up-1").exists(), launcher)
        launcher.popen.terminate()
        assert launcher.end() == 0, launcher.text
    assert "again" not in launcher.text.replace("come again", "")
    assert not (tmp_path / "1-2").exists()


def test_a_signal_while_a_new_world_starts_ends_it(tmp_path: Path) -> None:
    script = """
if RANK == 0 and LIFE == 1:
    up()
    sys.exit(3)
print("life", LIFE, flush=True)
time.sleep(600)
"""
    with supervised(script, tmp_path, "restarts.FIRST_WAIT_S = 0.02") as launcher:
        wait_until(lambda: "[0] life 2" in launcher.lines, launcher)
        launcher.popen.terminate()
        assert launcher.end() == 128 + signal.SIGTERM, launcher.text
    assert not (tmp_path / "0-3").exists()


STUBBORN = """
def on_signal(number, _):
    print("signal", number, flush=True)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
up()
wait("1-1")
print("ready", flush=True)
while True:
    time.sleep(600)
"""


def test_a_second_signal_kills_what_does_not_heed_it(tmp_path: Path) -> None:
    with supervised(STUBBORN, tmp_path, "world.KILL_S = 0.1") as launcher:
        wait_until(lambda: "[0] ready" in launcher.lines, launcher)
        launcher.popen.terminate()
        wait_until(lambda: "[0] signal 15" in launcher.lines, launcher)
        launcher.popen.send_signal(signal.SIGINT)
        assert launcher.end() == 1, launcher.text

    # It is heard by rank 0 first, which may end in order.
    assert [line for line in launcher.lines if line.startswith("[0] signal")] == [
        "[0] signal 15",
        "[0] signal 2",
    ]
    assert not is_alive(pid_of(tmp_path, 0, 1))


def test_a_drain_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with supervised(STUBBORN, tmp_path, grace_s=0.3) as launcher:
        wait_until(lambda: "[0] ready" in launcher.lines, launcher)
        launcher.popen.terminate()
        assert launcher.end() == 1, launcher.text

    assert "error: rank 0 did not end in time; it said last:" in launcher.lines
    assert not is_alive(pid_of(tmp_path, 0, 1))


def test_a_process_ends_with_its_guard(tmp_path: Path) -> None:
    script = """
if RANK and LIFE == 1:
    time.sleep(600)
if RANK:
    put("outlives", is_alive(get("1-1")))
    put("done")
    sys.exit(0)
up()
wait("done")
"""
    with supervised(script, tmp_path, "restarts.FIRST_WAIT_S = 0.02") as launcher:
        wait_until(lambda: (tmp_path / "up-1").exists(), launcher)
        wait_until(lambda: (tmp_path / "1-1").exists(), launcher)
        process = pid_of(tmp_path, 1, 1)
        (guard,) = [one for one in children_of(launcher.popen.pid) if process in children_of(one)]
        os.kill(guard, signal.SIGKILL)
        assert launcher.end() == 0, launcher.text
    assert json.loads((tmp_path / "outlives").read_text()) is False
    assert "rank 1 was killed by SIGKILL, it is started again in 0.02 s" in launcher.lines


def test_a_service_goes_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    script = (
        FOLLOW
        + """
up()
wait("deaf")
for _ in range(10000):
    print("many words", flush=True)
put("done")
"""
    )
    popen = subprocess.Popen(
        [sys.executable, "-c", launcher_code(script, tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert popen.stdout is not None
    with popen.stdout:
        wait_until(lambda: (tmp_path / "up-1").exists(), "it is up")
    (tmp_path / "deaf").touch()
    popen.wait(30)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_rank_0_that_ends_with_a_word_is_not_started_again(
    code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = FOLLOW + f"up()\nwait('1-1')\nput('done')\nsys.exit({code})"

    assert run(script, tmp_path) == code
    assert "again in" not in (told := capfd.readouterr().out)
    assert ("error: rank 0 ended with exit code 2" in told) == (code == 2)


def test_a_follower_that_was_told_to_end_is_not_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
if RANK == 0:
    up()
    while is_alive(get("1-1")):
        time.sleep(0.005)
    time.sleep(0.2)  # ten times the first wait
    sys.exit(0)
wait("up-1")
"""
    assert run(script, tmp_path) == 0
    assert "again in" not in capfd.readouterr().out
    assert not (tmp_path / "1-2").exists()


def test_rank_0_drains_and_all_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    script = """
def on_signal(number, _):
    for _ in range(20):
        os.write(1, b"draining\\n")
        time.sleep(0.01)
    if RANK == 0:
        put("drained")
        sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
put(f"runs-{RANK}", TOKEN)
while True:
    os.write(1, b"something to say\\n")
    time.sleep(0.01)
"""
    runs = [tmp_path / f"runs-{rank}" for rank in (0, 1)]
    with supervised(script, tmp_path) as launcher:
        wait_until(lambda: all(file.exists() for file in runs), launcher)
        launcher.popen.kill()
        tokens = [Path(json.loads(file.read_text())) for file in runs]
        pids = [pid_of(tmp_path, rank, 1) for rank in (0, 1)]
        wait_until(lambda: not any(map(is_alive, pids)), "processes end")
        wait_until(lambda: not any(token.exists() for token in tokens), "tokens go")
    # Nobody listened to what it said meanwhile.
    assert (tmp_path / "drained").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_rank_0_alone_and_the_others_end_with_it(
    number: int, tmp_path: Path
) -> None:
    script = """
def on_signal(number, _):
    print("signal", number, flush=True)
    put("done")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
print("ready", flush=True)
while not (RANK and has("done")):
    time.sleep(0.01)
"""
    with supervised(script, tmp_path) as launcher:
        wait_until(lambda: launcher.text.count("ready") == 2, launcher)
        # Ctrl-C reaches a whole group of processes.
        os.killpg(launcher.popen.pid, number)
        assert launcher.end() == 0, launcher.text

    assert [line for line in launcher.lines if "signal" in line] == [f"[0] signal {number:d}"]
