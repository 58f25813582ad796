"""A service stays up: ranks that are lost come again, and all do when rank 0 is lost.

Scripts stand for `distkv`; guards, pipes and signals are real.
"""

import json
import signal
import sys
from pathlib import Path

import pytest

from serve.launch import local, process, restarts, world
from serve.launch.restarts import Restarts
from serve.launch.supervisor import supervise
from serve.launch.told import READY, UP, Fenced, told_by
from tests.launch.scripts import guards, run, supervised
from tests.world.running import wait_until

pytestmark = pytest.mark.usefixtures("quick")


def put_when_told(monkeypatch: pytest.MonkeyPatch, line: str, file: Path) -> None:
    """Write a file once the launcher has said a line."""
    real = process.say

    def say(given: str) -> None:
        real(given)
        if given == line:
            file.touch()

    monkeypatch.setattr(process, "say", say)


def test_a_rank_that_dies_is_started_again_in_the_same_world(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
put(f"token-{RANK}-{LIFE}", open(TOKEN).read())
if RANK == 0:
    up()
    wait("1-2")
    put("done")
elif LIFE == 1:
    print("no more blocks", flush=True)
    wait("up-1")
    os.kill(os.getpid(), signal.SIGKILL)
wait("done")
"""
    assert run(script, tmp_path) == 0

    told = capfd.readouterr().out
    again = "rank 1 was killed by SIGKILL, it is started again in 0.02 s; it said last:\n"
    assert f"{again}  no more blocks\n" in told
    assert "error" not in told
    tokens = {
        json.loads((tmp_path / f"token-{life}").read_text()) for life in ("0-1", "1-1", "1-2")
    }
    assert len(tokens) == 1


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restarts, "FIRST_WAIT_S", 0.5)
    one = Restarts(10)

    assert [one.next_wait_s(59.9) for _ in range(11)] == [
        *(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0),
        None,
    ]
    assert one.next_wait_s(60.0) == 0.5
    assert one.next_wait_s(0.0) == 1.0
    assert Restarts(0).next_wait_s(60.0) is None


def test_a_rank_that_dies_too_often_is_given_up_and_the_service_goes_on(tmp_path: Path) -> None:
    script = """
if RANK:
    wait("up-1")
    sys.exit(7)
up()
wait("done")
"""
    quickly = "restarts.FIRST_WAIT_S = 0.02"
    with supervised(script, tmp_path, quickly) as launcher:
        given_up = (
            "rank 1 ended with exit code 7 again after 3 new starts, the service goes on without it"
        )
        wait_until(lambda: given_up in launcher.lines, launcher)
        (tmp_path / "done").touch()
        assert launcher.end() == 0, launcher.text

    waits = ["0.02 s", "0.04 s", "0.08 s"]
    assert [line for line in launcher.lines if line.startswith("rank 1")] == [
        *(f"rank 1 ended with exit code 7, it is started again in {wait}" for wait in waits),
        given_up,
    ]


@pytest.mark.parametrize("ends_itself", [True, False])
def test_a_world_that_cannot_do_without_a_rank_is_started_anew(
    ends_itself: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(world, "GOODBYE_S", 30 if ends_itself else 0.2)
    script = f"""
if LIFE == 2:
    sys.exit(0)
if RANK == 0:
    up(may_come_again=False)
    wait("told" if {ends_itself} else "never")
    sys.exit(3)
wait("up-1")
sys.exit(7)
"""
    lost = "rank 1 ended with exit code 7, without it rank 0 ends the service"
    put_when_told(monkeypatch, lost, tmp_path / "told")
    assert run(script, tmp_path) == 0

    told = capfd.readouterr().out.splitlines()
    assert lost in told
    # Named is who ended first.
    again = "rank 1 ended with exit code 7, the service is started again in 0.02 s (1 of 10)"
    assert again in told


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("sys.exit(70)", "ended with exit code 70"),
    ],
)
def test_when_rank_0_dies_a_new_world_is_started(
    end: str, how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = f"""
put(f"token-{{RANK}}-{{LIFE}}", open(TOKEN).read())
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if RANK == 0 and LIFE == 1:
    up()
    wait("1-1")
    print("no more blocks")
    {end}
if LIFE == 2:
    put(f"old-{{RANK}}", is_alive(get("1-1")))
    sys.exit(0)
time.sleep(600)
"""
    asked = []

    def commands() -> list[list[str]]:
        asked.append(1)
        return guards(script, tmp_path)

    assert supervise(commands, ["0", "1"], grace_s=20, max_restarts=10) == 0

    told = capfd.readouterr().out
    again = f"rank 0 {how}, the service is started again in 0.02 s (1 of 10); it said last:\n"
    assert again in told
    assert "\n  no more blocks\n" in told
    assert "error" not in told
    # Nothing of the old world runs, and nothing of it could join the new one.
    assert [json.loads((tmp_path / f"old-{rank}").read_text()) for rank in (0, 1)] == [False] * 2
    first, second = (
        {json.loads((tmp_path / f"token-{rank}-{life}").read_text()) for rank in (0, 1)}
        for life in (1, 2)
    )
    assert len(first) == len(second) == 1
    assert first != second
    assert len(asked) == 2


def test_new_worlds_that_never_are_up_are_bounded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
if RANK == 0 and LIFE == 1:
    up()
    wait("1-1")
    sys.exit(3)
if RANK == 0:
    sys.exit({2: 2, 3: 9}[LIFE])
time.sleep(600)
"""
    assert run(script, tmp_path, max_restarts=2) == 9

    lines = [line for line in capfd.readouterr().out.splitlines() if "exit code" in line]
    assert [line.partition(";")[0] for line in lines] == [
        "rank 0 ended with exit code 3, the service is started again in 0.02 s (1 of 2)",
        "rank 0 ended with exit code 2, the service is started again in 0.04 s (2 of 2)",
        "error: rank 0 ended with exit code 9 again after 2 new starts",
    ]


def test_without_restarts_what_dies_stays_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
if RANK == 0:
    up()
    wait("told")
    os.kill(os.getpid(), signal.SIGKILL)
wait("up-1")
sys.exit(7)
"""
    given_up = "rank 1 ended with exit code 7, the service goes on without it"
    put_when_told(monkeypatch, given_up, tmp_path / "told")
    assert run(script, tmp_path, max_restarts=0) == 128 + signal.SIGKILL

    told = capfd.readouterr().out.splitlines()
    assert given_up in told
    assert "error: rank 0 was killed by SIGKILL; it said last:" in told


def test_a_process_that_is_fenced_off_is_killed_at_once_and_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
if RANK == 0:
    up()
    pid = get("1-1")
    # Of no rank, of nobody's process, of this one: none is killed.
    for rank, number in ((7, pid), (1, pid + 1), (0, os.getpid())):
        tell(f"kill rank {rank}, process {number}")
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.005)
    begin = time.monotonic()
    tell(f"kill rank 1, process {pid}")
    while is_alive(pid):
        time.sleep(0.001)
    put("took_s", time.monotonic() - begin)
    new = get("1-2")
    tell(f"kill rank 1, process {pid}")
    put("again")
    wait("heard")
    put("lives", is_alive(new))
    put("done")
elif LIFE == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
else:
    wait("again")
    # By the same way as the order before it.
    time.sleep(0.1)
    put("heard")
    wait("done")
"""
    assert run(script, tmp_path) == 0
    took_s = json.loads((tmp_path / "took_s").read_text())
    assert took_s < 1  # some milliseconds, on a machine that does nothing else
    assert json.loads((tmp_path / "lives").read_text()) is True
    assert capfd.readouterr().out.count("rank 1 was killed by SIGKILL, it is started again") == 1


def test_every_world_on_this_machine_has_ports_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worlds = []

    def supervise_twice(commands, labels, *, grace_s, max_restarts) -> int:
        worlds.extend([commands(), commands()])
        return 5

    ports = iter([1000, 2000])
    monkeypatch.setattr(local, "free_port_pair", lambda: next(ports))
    monkeypatch.setattr(local, "supervise", supervise_twice)

    assert local.launch(["tiny"], 2, grace_s=45, max_restarts=1) == 5
    for commands, port in zip(worlds, (1000, 2000), strict=True):
        assert commands[1] == [
            *(sys.executable, "-u", "-m", "serve.launch.guard", "--grace-s", "45", "--"),
            *("serve", "tiny", "--coordinator", f"127.0.0.1:{port}", "--num-hosts", "2"),
            *("--host-rank", "1"),
        ]


def test_only_whole_lines_of_rank_0_are_orders() -> None:
    assert told_by(UP) == UP
    assert told_by(READY) == READY
    assert told_by("distkv-world: kill rank 2, process 4711") == Fenced(2, 4711)
    for line in (f" {UP}", f"{READY}.", "distkv-world: kill rank 2, process 4711 now", ""):
        assert told_by(line) is None
