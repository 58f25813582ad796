"""`distkv launch --ssh` over hosts that are network namespaces, seen from outside."""

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
from typing import NamedTuple

from benchmarks.network_hosts import Hosts

COMMAND = "import sys; from distkv_jax.cli import main; sys.exit(main())"
SSH = '#!/bin/sh\nexec "{python}" -I -S "{file}" "{folder}" "{prefix}" "$@"\n'
START_S, END_S = 240.0, 90.0
FORMED = re.compile(r"the world has (\d+) processes now, after ([\d.]+) s")


class Formed(NamedTuple):
    """The world was formed anew.

    Attributes:
        time: `time.monotonic()` of when that was said.
        hosts: How many there were then.
        seconds: How long it took.
    """

    time: float
    hosts: int
    seconds: float


class NetworkService:
    """A service whose processes are on `Hosts`, started by an `ssh` that goes there.

    Attributes:
        lines: What it said, each with `time.monotonic()` of when.
    """

    def __init__(self, hosts: Hosts, folder: Path, serve_args: Sequence[str]) -> None:
        self.lines: list[tuple[float, str]] = []
        self._hosts = hosts
        self._folder = folder
        commands = folder / "commands"
        commands.mkdir()
        ssh = commands / "ssh"
        file = Path(__file__).with_name("network_ssh.py")
        ssh.write_text(
            SSH.format(python=sys.executable, file=file, folder=folder, prefix=hosts.prefix)
        )
        ssh.chmod(0o755)
        words = [sys.executable, "-c", COMMAND, "launch", "--ssh", ",".join(hosts.address)]
        words += ["--python", sys.executable, "--folder", os.getcwd(), *serve_args]
        self._popen = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_address(self) -> str:
        """Wait until it serves.

        Raises:
            TimeoutError: It ended, or takes too long.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            if (found := re.search(r" by gRPC on (\S+:\d+) ", self.text)) is not None:
                return found[1]
            time.sleep(0.05)
        raise TimeoutError("the service did not start")

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(line for _, line in self.lines.copy())

    @property
    def has_ended(self) -> bool:
        """Whether the launcher has."""
        return self._popen.poll() is not None

    def formed(self, since: float = 0.0) -> list[Formed]:
        """List when the world was formed anew."""
        found = [(when, FORMED.search(line)) for when, line in self.lines.copy() if when > since]
        return [Formed(when, int(one[1]), float(one[2])) for when, one in found if one is not None]

    def rank_on(self, host: str) -> int | None:
        """Find the process that serves or follows on a host; None where none does."""
        for pid in self._hosts.processes(host):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"\0--host-rank\0" in words and b"serve.launch.guard" not in words:
                    return pid
        return None

    def cut(self, host: str) -> None:
        """Cut a host's link, for its ssh too, which does not notice."""
        self._cut_file(host).touch()
        self._hosts.cut(host)

    def mend(self, host: str) -> None:
        """Mend it."""
        self._hosts.mend(host)
        self._cut_file(host).unlink()

    def end_ssh(self, host: str) -> None:
        """Have a host's ssh notice that it is cut off."""
        os.kill(int((self._folder / f"ssh-{host}").read_text()), signal.SIGTERM)

    def stop(self) -> int:
        """Drain it; gives its exit code, 0 where nothing was lost."""
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(END_S)

    def kill(self) -> None:
        """End it, with all it has started."""
        if self._popen.poll() is None:
            self._popen.terminate()
            # At the second signal it kills what is left.
            time.sleep(0.5)
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(20)
        self._popen.kill()
        self._popen.wait()
        self._reader.join(10)

    def _cut_file(self, host: str) -> Path:
        return self._folder / f"cut-{host}"

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for line in output:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
