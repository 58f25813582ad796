"""`distkv top` shows in a terminal, or in a pipe, what the page shows."""

import collections
import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from distkv_jax.cli.main import main
from distkv_jax.cli.top import picture, sparkline
from serve.proto.distkv.v1 import control_pb2 as pb
from tests.serve.running import Running, in_background, request_of, wait_submitted, wait_until


@pytest.fixture
def busy(service: Running) -> Iterator[Running]:
    """A server with a request under way."""
    message = request_of(5, request_id="letter-1", max_tokens=240, ignore_eos=True)
    call = service.inference.GenerateStream(message)
    reader = in_background(list, call)
    wait_submitted(service, 1)
    yield service
    call.cancel()
    # It may have ended by itself.
    reader.exception(20)


def shown(snapshot: pb.Snapshot, width: int = 100, height: int | None = None) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(picture(snapshot, collections.deque(), width, height))
    return console.export_text()


def a_snapshot(num_requests: int = 2) -> pb.Snapshot:
    usage: dict[str, Any] = {"total": 10, "free": 4, "held": 6}
    return pb.Snapshot(
        model="small",
        instances=[
            pb.InstanceBlocks(instance=0, **usage, lent=3, debts=[pb.Debt(debtor=1, num_blocks=3)]),
            pb.InstanceBlocks(instance=1, **usage, borrowed=3),
        ],
        requests=[
            pb.WatchedRequest(number=7 + n, request_id=f"r{n}", home=1, blocks={0: 3, 1: 2})
            for n in range(num_requests)
        ],
        now=pb.Point(generated_tokens_per_s=1234),
    )


def test_once_prints_a_picture_and_leaves(
    busy: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--server", busy.address, "--once"]) == 0

    out = capsys.readouterr().out
    assert "small  2 instances" in out
    assert "instance 1 |" in out
    assert "letter-1" in out
    assert "\x1b" not in out


def test_a_pipe_gets_one_picture(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--server", service.address]) == 0
    assert capsys.readouterr().out.count("2 instances") == 1


def test_blocks_debts_and_rates_are_shown() -> None:
    text = shown(a_snapshot())

    assert "instance 0 |AAABBB....| 6 of 10, 3 lent" in text
    assert "instance 1 |AABB##....| 6 of 10" in text
    assert "lent  0 -> 1: 3 blocks" in text
    assert "1,234 tokens/s" in text
    assert "12 of 20 KV blocks used" in text


def test_a_low_terminal_lists_fewer_requests_and_says_so() -> None:
    text = shown(a_snapshot(40), height=30)

    assert text.count("\n") <= 30
    assert "more requests" in text


def test_a_name_cannot_command_the_terminal() -> None:
    snapshot = a_snapshot(1)
    snapshot.requests[0].request_id = "\x1b]0;owned\x07[red]"

    assert "?]0;owned?[red]" in shown(snapshot)


def test_a_curve_is_as_high_as_its_largest_number() -> None:
    assert sparkline([9.0, 0.0, 1.0, 2.0, 4.0], 4) == "▁▃▅█"
    assert sparkline([0.0, 0.0], 4) == "  ▁▁"
    assert sparkline([], 2) == "  "


def test_an_interval_out_of_bounds_is_told(
    service: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--server", service.address, "--interval", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: interval_s=0 must be within 0.1..60\n")


def test_an_interrupt_leaves_cleanly(busy: Running) -> None:
    terminal, theirs = pty.openpty()
    script = "import sys; from distkv_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "top", "--server", busy.address, "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        # Linux says EIO when the other end is closed.
        with contextlib.suppress(OSError):
            while piece := os.read(terminal, 65536):
                seen.extend(piece)

    reader = in_background(read)
    wait_until(lambda: seen.count(b"2 instances") >= 3 or process.poll() is not None, "pictures")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    reader.result(20)
    os.close(terminal)

    assert (process.returncode, errors) == (0, b"")
    # It gives the terminal back: the other screen is left and the cursor shown.
    assert b"\x1b[?1049l" in seen and b"\x1b[?25h" in seen
