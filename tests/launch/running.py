"""Services that a launcher started, seen from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import Client
from tests.world.running import ROOT, wait_until

START_S = 120
END_S = 60
SERVE = (
    *("--mesh", "cpu-2", "--dtype", "float32", "--block-size", "8", "--num-blocks", "16"),
    *("--max-num-seqs", "4", "--no-warm-up", "--quiet", "--port", "0", "--http-port", "none"),
)
"""Settings of a small service of two hosts, each with one device."""
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


class Launched:
    """A process in a group of its own, and what it says."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.popen = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "\n".join(self.lines)

    def connect(self) -> Client:
        """Wait until it serves."""
        wait_until(lambda: self._address() or self.popen.poll() is not None, self, START_S)
        address = self._address()
        assert address, self.text
        return Client(address, max_retries=0, timeout_s=120)

    def end(self) -> int:
        """Wait until it has ended."""
        code = self.popen.wait(END_S)
        self._reader.join(10)
        return code

    def _address(self) -> str | None:
        found = re.search(r"by gRPC on (\S+) ", self.text)
        return found[1] if found else None

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())


@contextlib.contextmanager
def launched(words: Sequence[str], folder: Path) -> Iterator[Launched]:
    """Start a command, and end it whatever it does."""
    one = Launched(words, folder)
    try:
        yield one
    finally:
        if one.popen.poll() is None:
            one.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.popen.wait(20)
        # Only what it left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.popen.pid, signal.SIGKILL)
        one.popen.wait()


def distkv(*words: str) -> list[str]:
    """The command line of `distkv`."""
    code = "import sys; from distkv_jax.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *words]


def command_lines() -> str:
    """What anybody on this machine sees of its processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)
