"""The loop of a process that follows: it runs the leader's commands and never schedules."""

import queue
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import Command, Reset, Step
from distkv_jax.engine.runner import Runner, step_failures
from distkv_jax.errors import StepFailed
from distkv_jax.world.digest import digest_of


@runtime_checkable
class Reporter(Protocol):
    """Hears how far the commands are; called on two threads, must not block."""

    def dispatched(self, number: int) -> None:
        """A command was started."""
        ...

    def read(self, number: int, digest: bytes) -> None:
        """A step's tokens were read."""
        ...

    def said(self, messages: Sequence[FromHost]) -> None:
        """The rManagers of this process have said something."""
        ...

    def failed(self, number: int, error: str) -> None:
        """A command failed here: all until the next `Reset` are left out."""
        ...


class Follower:
    """Carries out commands as they come, and reads what steps sampled behind them.

    Like the leader it reads a step while later ones run: the reading has a thread of its own.
    Use it in a `with`.
    """

    def __init__(self, runner: Runner, reporter: Reporter) -> None:
        self._runner = runner
        self._reporter = reporter
        self._last_reset = 0
        self._failed = 0
        self._unread: queue.SimpleQueue[Unread | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_all, name="distkv-reader", daemon=True)

    def __enter__(self) -> "Follower":
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unread.put(None)
        # After an error the devices may wait for a process that is gone.
        if error is None:
            self._reader.join()

    def run(self, commands: Iterable[Command]) -> None:
        """Carry out commands until there are no more."""
        for command in commands:
            if isinstance(command, Reset):
                self._last_reset = command.number
            elif self._failed > self._last_reset:
                continue
            try:
                result = self._runner.execute(command)
                self._reporter.said(self._runner.hear())
            except StepFailed as error:
                self._fail(command.number, error)
                continue
            self._reporter.dispatched(command.number)
            if isinstance(command, Step):
                assert result is not None
                self._unread.put(Unread(command.number, result[0]))

    def _read_all(self) -> None:
        while (one := self._unread.get()) is not None:
            try:
                with step_failures():
                    ids = np.asarray(one.ids)
            except StepFailed as error:
                self._fail(one.number, error)
            else:
                self._reporter.read(one.number, digest_of(ids))

    def _fail(self, number: int, error: StepFailed) -> None:
        # What was dispatched before a reset and fails after it concerns nobody any more.
        if number > self._last_reset:
            self._failed = max(self._failed, number)
            self._reporter.failed(number, str(error))


class Unread(NamedTuple):
    """A step's sampled tokens, still on the devices."""

    number: int
    ids: jax.Array
