"""A server process with a journal that can be killed and started again on its address."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from serve.launch.local import free_port_pair

ROOT = Path(__file__).parents[3]
START_S = 120
SETTINGS = (
    "--mesh cpu-2 --dtype float32 --block-size 8 --num-blocks 96 --max-num-seqs 8 "
    "--max-num-batched-tokens 32 --no-warm-up --no-planner --quiet --http-port none"
).split()


class Process:
    """`distkv serve` on one port, started as often as it is wanted.

    Attributes:
        address: HOST:PORT, the same for all of them.
        lines: What the one that runs has said.
    """

    def __init__(self, model: Path, journal: Path, *settings: str) -> None:
        port = free_port_pair()
        self.address = f"127.0.0.1:{port}"
        words = "import sys; from distkv_jax.cli import main; sys.exit(main())"
        self._command = [sys.executable, "-u", "-c", words, "serve", str(model), *SETTINGS]
        self._command += ["--port", str(port), "--journal", str(journal), *settings]
        self.lines: list[str] = []
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._popen: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it serves."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "tests"),
        }
        self._popen = subprocess.Popen(
            self._command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._popen, self._said), daemon=True).start()
        self.lines = []
        self.wait_for(r"by gRPC on ")

    def wait_for(self, pattern: str) -> str:
        """Wait until it says something."""
        while True:
            line = self._said.get(timeout=START_S)
            assert line is not None, "\n".join(self.lines)
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGKILL)
        self._popen.wait(30)

    def stop(self) -> int:
        """End it in order; gives the exit code."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(60)

    def close(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self.kill()

    @staticmethod
    def _read(popen: "subprocess.Popen[str]", said: "queue.SimpleQueue[str | None]") -> None:
        assert popen.stdout is not None
        with popen.stdout as output:
            for line in output:
                said.put(line.rstrip())
        said.put(None)
