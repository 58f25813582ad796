"""Traces of JAX's profiler on demand: where the devices' and the host's time goes."""

import asyncio
import concurrent.futures
import contextlib
import datetime
import functools
import itertools
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from distkv_jax.errors import ConfigError, QueueFull, Unavailable
from serve.errors import FieldError

T = TypeVar("T")

logger = logging.getLogger(__name__)

MIN_S, MAX_S, DEFAULT_S = 0.1, 60.0, 3.0


class Profiler:
    """Takes one trace at a time; the event loop owns it."""

    def __init__(self, folder: Path | None) -> None:
        """Prepare.

        Args:
            folder: Where traces go, each into a folder of its own; None takes none.
        """
        self._folder = folder
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._is_over = False

    async def trace(self, duration_s: float) -> Path:
        """Trace the whole process for a while.

        Whoever leaves meanwhile ends the trace; the next one can begin when it is written.

        Args:
            duration_s: Seconds, 0.1 to 60.

        Returns:
            The folder that has the trace.

        Raises:
            FieldError: The duration is not within its limits.
            ConfigError: The server has no folder for traces.
            QueueFull: A trace is being taken.
            Unavailable: The server is being stopped.
        """
        if not (math.isfinite(duration_s) and MIN_S <= duration_s <= MAX_S):
            raise FieldError(
                f"duration_s={duration_s:g} must be within {MIN_S:g}..{MAX_S:g}", "duration_s"
            )
        if self._folder is None:
            raise ConfigError(
                "no traces are taken here: the server was started without --profile-dir"
            )
        if self._task is not None:
            raise QueueFull("a trace is being taken, one at a time")
        if self._is_over:
            raise Unavailable("the server is being stopped, it takes no more traces")
        self._leave.clear()
        folder = self._folder
        made: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        task = self._task = asyncio.create_task(self._take(folder, duration_s, made))
        task.add_done_callback(self._forget)
        try:
            await asyncio.shield(task)
        finally:
            self._leave.set()
        return made.result()

    async def stop(self, timeout_s: float) -> None:
        """End the trace that is being taken, and take no more; it has so long to be written."""
        self._is_over = True
        self._leave.set()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=timeout_s)
            if late:
                logger.warning("a trace was not written within %g s, it is lost", timeout_s)

    async def _take(self, parent: Path, duration_s: float, made: "asyncio.Future[Path]") -> None:
        folder = await in_daemon(functools.partial(new_folder, parent))
        made.set_result(folder)
        await in_daemon(functools.partial(begin, folder))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(duration_s):
                    await self._leave.wait()
        finally:
            await in_daemon(jax.profiler.stop_trace)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # who asked has heard of it, or has left


async def in_daemon(work: Callable[[], T]) -> T:
    """Run something in a thread that the process does not wait for when it exits."""
    ended: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="distkv-profiler", daemon=True).start()
    # A thread cannot be stopped, so that its future must not be cancelled.
    return await asyncio.shield(asyncio.wrap_future(ended))


def begin(folder: Path) -> None:
    """Begin a trace of host and devices, by their own annotations.

    Python's calls are not traced: writing them down holds every thread up for long.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)


def new_folder(parent: Path) -> Path:
    """Make a folder named by the time, and by a number if there is one."""
    name = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers do not end")
