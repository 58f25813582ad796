"""A process of a service, as its launcher sees it: a guard's pipes, or those of an ssh to one."""

import collections
import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from serve.launch.told import Fenced, told_by

LAST_LINES = 20
"""Of a process that died: how much of what it said last is said again."""
KILL_S = 5.0
"""For guards to end when they were told to kill; an ssh may have lost its host."""
LAST_WORDS_S = 1.0
"""For the output of a process that has ended: what it started may still hold the pipe."""
BY_SIGNAL = 128
"""Added to a signal's number: exit code of a guard, or a shell, whose process was killed by it."""


class Told(NamedTuple):
    """A process said what is for its launcher."""

    process: "Process"
    what: Fenced | str


class Ended(NamedTuple):
    """A process has ended, and what it said has been read."""

    process: "Process"


class Asked(NamedTuple):
    """The launcher got a signal."""

    number: int


Event: TypeAlias = Told | Ended | Asked
Events: TypeAlias = "queue.SimpleQueue[Event]"


class Process:
    """One that was started; its lines are printed, and its news put into a queue.

    Attributes:
        rank: Which.
        started: When, by `time.monotonic()`.
        last: What it said last.
    """

    def __init__(
        self, rank: int, label: str, words: Sequence[str], token: str, events: Events
    ) -> None:
        """Start it.

        Args:
            rank: Which.
            label: Stands before every line.
            words: A command that ends in `serve.launch.guard`.
            token: By which the processes of a world know each other.
            events: Where its news go.

        Raises:
            OSError: There is no such command.
        """
        self.rank = rank
        self.started = time.monotonic()
        self.last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._label = label
        self._events = events
        # In a group of its own, so that Ctrl-C does not reach it.
        self._popen = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.order(token)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, daemon=True).start()

    @property
    def code(self) -> int | None:
        """Exit code, 128 + number where a signal ended it; None while it runs."""
        code = self._popen.poll()
        return code if code is None or code >= 0 else BY_SIGNAL - code

    @property
    def how_ended(self) -> str:
        """Say how it ended, as in `was killed by SIGKILL`."""
        code = self.code
        if code is None:
            return "did not end in time"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(code - BY_SIGNAL).name}"
        return f"ended with exit code {code}"

    def order(self, line: str) -> None:
        """Say something to its guard, which may be gone."""
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.write(f"{line}\n")
            self._popen.stdin.flush()

    def close(self, timeout_s: float) -> None:
        """Wait for it, then do not wait any longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        self._popen.kill()
        self._popen.wait()
        self._reader.join(LAST_WORDS_S)
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for line in output:
                text = line.rstrip("\n")
                self.last.append(text)
                say(f"[{self._label}] {text}")
                told = told_by(text)
                if told is not None:
                    self._events.put(Told(self, told))

    def _wait(self) -> None:
        self._popen.wait()
        self._reader.join(LAST_WORDS_S)
        self._events.put(Ended(self))


def kill_all(processes: Sequence[Process]) -> None:
    """Kill what still runs, and wait until it is gone, or its ssh cannot say."""
    for process in processes:
        process.order("KILL")
    deadline = time.monotonic() + KILL_S
    for process in processes:
        process.close(max(0.0, deadline - time.monotonic()))


def say(line: str) -> None:
    """Print a line; a service goes on when nobody listens."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def say_end(process: Process, what: str, *, prefix: str = "") -> None:
    """Say how a process ended and what comes next, then what it said last."""
    told = f"{prefix}rank {process.rank} {what}"
    if process.last:
        told = "\n  ".join([f"{told}; it said last:", *process.last])
    say(told)
