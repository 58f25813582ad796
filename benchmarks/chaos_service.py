"""`distkv launch` seen from outside: its processes by rank, what it says and when."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

COMMAND = "import sys; from distkv_jax.cli import main; sys.exit(main())"
START_S = 300.0
END_S = 120.0
FORMED = re.compile(r"the world has (\d+) processes now, after ([\d.]+) s")


class ChaosService:
    """A service of several processes on this machine.

    Attributes:
        lines: What it said, each with `time.monotonic()` of when.
    """

    def __init__(self, num_hosts: int, serve_args: Sequence[str]) -> None:
        words = [sys.executable, "-c", COMMAND, "launch", "--hosts", f"{num_hosts}"]
        words += ["--max-restarts", "1000", *serve_args]
        self.lines: list[tuple[float, str]] = []
        self._popen = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_address(self) -> str:
        """Wait until it serves.

        Raises:
            RuntimeError: It ended, or takes too long.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            for _, line in self.lines.copy():
                if (found := re.search(r" by gRPC on (\S+:\d+) ", line)) is not None:
                    return found[1]
            time.sleep(0.05)
        raise RuntimeError("the service did not start:\n" + self.text)

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(line for _, line in self.lines.copy())

    @property
    def has_ended(self) -> bool:
        """Whether the launcher has."""
        return self._popen.poll() is not None

    def pid_of(self, rank: int) -> int | None:
        """Find the process of a rank; None where it does not run now."""
        place = f"\0--host-rank\0{rank}\0".encode()
        for pid in descendants(self._popen.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                # Its guard has the same words, and is not what a host's failure ends.
                if place in words and b"serve.launch.guard" not in words:
                    return pid
        return None

    def send(self, rank: int, number: int) -> int | None:
        """Send a signal to a rank; gives its process, None where it does not run."""
        pid = self.pid_of(rank)
        if pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def formed(self) -> list[tuple[float, int, float]]:
        """List when the world was formed anew, of how many processes, and how long it took."""
        found = [(when, FORMED.search(line)) for when, line in self.lines.copy()]
        return [(when, int(one[1]), float(one[2])) for when, one in found if one is not None]

    def stop(self) -> int:
        """Drain it; gives its exit code, 0 where nothing was lost or leaked."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            return self._popen.wait(END_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it, with all it has started."""
        for pid in (*descendants(self._popen.pid), self._popen.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()
        self._reader.join(10)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for line in output:
                self.lines.append((time.monotonic(), line.rstrip("\n")))


def descendants(pid: int) -> list[int]:
    """List the processes that a process and those have started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found
