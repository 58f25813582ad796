"""One world of processes, from its start until all have ended; ranks that are lost come again."""

import math
import queue
import secrets
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from serve.launch.process import (
    BY_SIGNAL,
    KILL_S,
    Asked,
    Ended,
    Events,
    Process,
    Told,
    kill_all,
    say_end,
)
from serve.launch.restarts import Restarts
from serve.launch.told import READY, UP, Fenced

GOODBYE_S = 15.0
"""For the processes that are left to end by themselves, before they are killed."""
EXPLAIN_S = 3.0
"""For the others to say what they know, when one died before they were up."""
CUT_OFF, BAD_INPUT = 1, 2
"""Exit codes of a server that has said itself what was wrong, and would say it again."""


class Over(NamedTuple):
    """How a world ended.

    Attributes:
        code: Exit code; 0 if all ended in order.
        blamed: Whose end it was; None if nothing is to be told.
        how: How that one ended.
        is_lost: Whether nobody wanted it to end.
        up_s: Seconds for which it served; None if it never did.
    """

    code: int
    blamed: Process | None
    how: str
    is_lost: bool
    up_s: float | None


class World:
    """Keeps up the processes of one world; rank 0 says what may be done about the others.

    One thread owns it. Nothing of it runs once `run` has returned.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        labels: Sequence[str],
        events: Events,
        *,
        grace_s: float,
        max_restarts: int,
    ) -> None:
        """Start nothing yet.

        Args:
            commands: That of every rank, ends in `serve.launch.guard`.
            labels: What stands before the lines of every rank.
            events: News of all processes, of older worlds too, and signals.
            grace_s: Seconds to drain and end in, after a signal.
            max_restarts: New starts of a rank in a row.
        """
        self._commands = commands
        self._labels = labels
        self._events = events
        self._grace_s = grace_s
        self._token = secrets.token_hex(32)
        self._processes: list[Process] = []
        self._restarts = [Restarts(max_restarts) for _ in commands]
        self._due: dict[int, float] = {}
        self._running = set(range(len(commands)))
        # In the order of their ends; not those that rank 0 goes on without.
        self._ended: list[Process] = []
        self._up_at: float | None = None
        self._may_come_again = False
        self._asked: list[int] = []
        self._is_final = False
        # When all that still runs is killed.
        self._deadline = math.inf

    def run(self) -> Over:
        """Start all ranks and keep them up until the world ends.

        Raises:
            OSError: A process cannot be started; none runs.
        """
        try:
            for rank in range(len(self._commands)):
                self._processes.append(self._start(rank))
            while self._running and time.monotonic() < self._deadline:
                self._step()
            return self._over()
        finally:
            kill_all(self._processes)

    def _start(self, rank: int) -> Process:
        return Process(rank, self._labels[rank], self._commands[rank], self._token, self._events)

    def _step(self) -> None:
        now = time.monotonic()
        for rank in [rank for rank, due in self._due.items() if due <= now]:
            del self._due[rank]
            self._processes[rank].close(0)
            self._processes[rank] = self._start(rank)
            self._running.add(rank)
        until = min([self._deadline, *self._due.values()])
        try:
            event = self._events.get(timeout=None if until == math.inf else max(0.0, until - now))
        except queue.Empty:
            return
        if isinstance(event, Asked):
            self._on_asked(event.number)
        elif self._processes[event.process.rank] is not event.process:
            return  # of an older world, or a process that was replaced
        elif isinstance(event, Ended):
            self._on_ended(event.process)
        elif event.process.rank == 0:
            self._on_told(event)

    def _on_asked(self, number: int) -> None:
        """Let rank 0 drain; at the second signal it stops at once, and is killed soon after."""
        self._asked.append(number)
        self._is_final = True
        self._due.clear()
        waits = (self._grace_s, KILL_S, 0.0)
        self._end_in(waits[min(len(self._asked), len(waits)) - 1])
        self._processes[0].order(signal.Signals(number).name.removeprefix("SIG"))

    def _on_told(self, told: Told) -> None:
        if told.what == UP and self._up_at is None:
            self._up_at = time.monotonic()
        elif told.what == READY:
            self._may_come_again = True
        elif isinstance(told.what, Fenced) and 0 < told.what.rank < len(self._processes):
            # Its guard kills no other one than this.
            self._processes[told.what.rank].order(f"KILL {told.what.pid}")

    def _on_ended(self, process: Process) -> None:
        self._running.discard(process.rank)
        is_up = self._up_at is not None
        if process.rank and process.code and self._may_come_again:
            self._come_again(process)
            return
        self._ended.append(process)
        if process.rank == 0:
            self._due.clear()
            in_order = process.code in (0, CUT_OFF) and (is_up or self._asked or not process.code)
            if in_order:
                self._end_in(GOODBYE_S)
            else:
                # Nothing is lost with the others; what they say may be why.
                self._end_in(0.0 if is_up or self._asked else EXPLAIN_S)
        elif not is_up:
            self._end_in(GOODBYE_S if process.code == 0 else EXPLAIN_S)
        elif process.code == 0:
            # It was told to: rank 0 is about to end too.
            self._is_final = True
            self._due.clear()
            self._end_in(GOODBYE_S)
        elif not self._is_final:
            say_end(process, f"{process.how_ended}, without it rank 0 ends the service")
            self._end_in(GOODBYE_S)

    def _come_again(self, process: Process) -> None:
        """Start a rank again after a while, unless all shall end."""
        if self._deadline < math.inf:
            return
        restarts = self._restarts[process.rank]
        before = restarts.count
        wait_s = restarts.next_wait_s(time.monotonic() - process.started)
        if wait_s is None:
            often = f" again after {before} new starts" if before else ""
            say_end(process, f"{process.how_ended}{often}, the service goes on without it")
            return
        self._due[process.rank] = time.monotonic() + wait_s
        say_end(process, f"{process.how_ended}, it is started again in {wait_s:g} s")

    def _end_in(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _over(self) -> Over:
        """Say how it ended; what still runs is about to be killed."""
        leader = self._processes[0]
        is_up = self._up_at is not None
        up_s = None if self._up_at is None else time.monotonic() - self._up_at
        code = None if 0 in self._running else leader.code
        said_itself = code == CUT_OFF and (is_up or self._asked)
        if code is not None and (said_itself or code - BY_SIGNAL in self._asked):
            return Over(code, None, "", False, up_s)
        blamed = [one for one in self._ended if one.code]
        blamed += [self._processes[rank] for rank in sorted(self._running)]
        if not blamed:
            return Over(0, None, "", False, up_s)
        final = (0, CUT_OFF, BAD_INPUT) if is_up else (0,)
        is_lost = not self._is_final and code not in final
        return Over(blamed[0].code or 1, blamed[0], blamed[0].how_ended, is_lost, up_s)
