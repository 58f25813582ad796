"""The engine's thread: the only one that touches scheduler, coordinator and devices."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.sequence import FinishReason
from distkv_jax.errors import DistKVError, EngineStopped, InvariantError, QueueFull, RequestError

T = TypeVar("T")

logger = logging.getLogger(__name__)

Sink = Callable[[list[Update]], None]
"""Takes what a step gave to its requests; called on the engine's thread, must not block."""


class Submit(NamedTuple):
    """Ask for requests to be served: all of them, or none."""

    requests: tuple[Request, ...]
    sink: Sink
    accepted: Future[None]


class Cancel(NamedTuple):
    """Ask for a request to end."""

    request_id: str


class Call(NamedTuple):
    """Ask for something to be read from the engine, between two steps."""

    read: Callable[[Engine], Any]
    result: Future[Any]


class Open(NamedTuple):
    """An accepted request, who hears of it, and which of its samples have not ended."""

    request: Request
    sink: Sink
    samples: set[int]


class EngineThread:
    """Runs an engine; others talk to it through one queue each way, one hand-over a step.

    Every accepted request's sink hears a finish reason for each of its samples exactly once, also
    when the engine stops or fails, or is `abandon`ed by somebody who knows that its thread waits
    for devices that will not answer; a sink that raises hears nothing more.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Submit | Cancel | Call | None] = queue.SimpleQueue()
        self._open: dict[str, Open] = {}
        # A finalizer may run on a thread that holds it.
        self._lock = threading.RLock()
        # Held while sinks are called, never while devices are waited for.
        self._delivery = threading.RLock()
        self._stopped: str | None = None
        self._failure: BaseException | None = None
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="distkv-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Iterable[Request], sink: Sink) -> None:
        """Hand requests over together; returns once they are queued.

        Raises:
            RequestError: One can never be served; none was queued.
            QueueFull: Too many wait; none was queued.
            EngineStopped: The engine takes no more requests.
        """
        self.submit_soon(requests, sink).result()

    def submit_soon(self, requests: Iterable[Request], sink: Sink) -> Future[None]:
        """Hand requests over together without waiting; the future has what `submit` raises.

        Cancelling the future before it runs takes them back.

        Raises:
            EngineStopped: The engine takes no more requests.
        """
        accepted: Future[None] = Future()
        self._send(Submit(tuple(requests), sink, accepted))
        return accepted

    def cancel(self, request_id: str) -> None:
        """Ask for a request to end; its sink hears of it. Without effect on one that has ended.

        Also at the exit of the interpreter, when an engine has stopped and modules are empty.
        """
        with self._lock:
            if self._stopped is None:
                self._inbox.put(Cancel(request_id))

    def call(self, read: Callable[[Engine], T]) -> T:
        """Run `read` between two steps, on the engine's thread, and give its result."""
        return self.call_soon(read).result()

    def call_soon(self, read: Callable[[Engine], T]) -> Future[T]:
        """Run `read` between two steps, on the engine's thread, without waiting for it.

        Raises:
            EngineStopped: The engine takes no more requests.
        """
        result: Future[T] = Future()
        self._send(Call(read, result))
        return result

    def wake(self) -> None:
        """Have the engine look for something to do, from any thread; once stopped it does not."""
        with contextlib.suppress(EngineStopped):
            self.call_soon(lambda engine: None)

    def abandon(self, error: DistKVError) -> None:
        """End everything with an error at once, from any thread but the engine's.

        The engine's thread is not waited for, now or by `close`: it may never come back.
        """
        with self._delivery:
            if self._failure is not None:
                return
            self._is_abandoned = True
            self._stop(error)
        self._refuse_rest()

    def close(self) -> None:
        """Cancel what is left, stop the thread, and check that nothing leaked.

        Raises:
            InvariantError: Blocks leaked, or the engine had stopped for such a reason.
        """
        with self._lock:
            if self._stopped is None:
                self._stopped = "it was closed"
                self._inbox.put(None)
        # The garbage collector may run a finalizer on any thread, this one too.
        if threading.current_thread() is not self._thread and not self._is_abandoned:
            self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, DistKVError):
                raise failure
            raise InvariantError(f"the engine failed: {failure!r}") from failure

    @property
    def has_stopped(self) -> bool:
        """Whether it takes no more requests; what failed by then did not fail by its own fault."""
        return self._stopped is not None

    @property
    def _refusal(self) -> str:
        return f"the engine takes no requests: {self._stopped}"

    def _send(self, message: Submit | Call) -> None:
        with self._lock:
            if self._stopped is not None:
                raise EngineStopped(self._refusal)
            self._inbox.put(message)

    def _run(self) -> None:
        try:
            while self._take_messages():
                if self._engine.has_work:
                    self._deliver(self._engine.step())
            self._deliver(self._engine.close())
        except BaseException as error:
            with self._delivery:
                if not self._is_abandoned:
                    self._stop(error)
        finally:
            self._refuse_rest()

    def _take_messages(self) -> bool:
        """Handle what came in, waiting for something when idle; False when asked to stop."""
        must_wait = not self._engine.has_work
        while True:
            try:
                message = self._inbox.get(block=must_wait)
            except queue.Empty:
                return True
            if message is None:
                return False
            self._handle(message)
            must_wait = must_wait and not self._engine.has_work

    def _handle(self, message: Submit | Cancel | Call) -> None:
        match message:
            case Submit(requests, sink, accepted):
                if accepted.set_running_or_notify_cancel():
                    self._take_in(requests, sink, accepted)
            case Cancel(request_id):
                self._deliver(self._engine.cancel(request_id))
            case Call(read, result):
                if not result.set_running_or_notify_cancel():
                    return
                try:
                    result.set_result(read(self._engine))
                except Exception as error:
                    result.set_exception(error)

    def _take_in(self, requests: tuple[Request, ...], sink: Sink, accepted: Future[None]) -> None:
        try:
            self._engine.submit(requests)
        except (RequestError, QueueFull) as error:
            accepted.set_exception(error)
        except BaseException as error:
            accepted.set_exception(error)
            raise
        else:
            with self._delivery:
                if self._is_abandoned:
                    accepted.set_exception(EngineStopped(self._refusal))
                    return
                for request in requests:
                    samples = set(request.open_samples)
                    self._open[request.request_id] = Open(request, sink, samples)
            accepted.set_result(None)

    def _deliver(self, updates: Iterable[Update]) -> None:
        """Hand a step's updates over, all of one sink together."""
        with self._delivery:
            groups: dict[Sink, list[Update]] = {}
            for update in updates:
                request_id = update.request.request_id
                one = self._open.get(request_id)
                if one is None:
                    continue
                groups.setdefault(one.sink, []).append(update)
                if update.finish_reason is not None:
                    one.samples.remove(update.index)
                    if not one.samples:
                        del self._open[request_id]
            for sink, group in groups.items():
                try:
                    sink(group)
                except Exception:
                    # One caller's fault must not reach the others: it hears nothing more.
                    logger.exception("a sink failed, its requests are cancelled")
                    self._forget(sink)

    def _forget(self, sink: Sink) -> None:
        """Cancel what a broken sink still waits for, and tell nobody."""
        for request_id in [name for name, one in self._open.items() if one.sink == sink]:
            self._open.pop(request_id)
            self._inbox.put(Cancel(request_id))

    def _stop(self, error: BaseException) -> None:
        """End everything with an error, without asking the engine, which is not to be trusted."""
        with self._lock:
            self._stopped = f"it failed: {error}"
        self._failure = error
        self._deliver(
            [
                Update(
                    one.request,
                    index,
                    finish_reason=FinishReason.ERROR.value,
                    error=f"the engine failed: {error}",
                )
                for one in self._open.values()
                for index in sorted(one.samples)
            ]
        )

    def _refuse_rest(self) -> None:
        """Answer messages that came too late."""
        while True:
            try:
                message = self._inbox.get(block=False)
            except queue.Empty:
                return
            if isinstance(message, Submit):
                if message.accepted.set_running_or_notify_cancel():
                    message.accepted.set_exception(EngineStopped(self._refusal))
            elif isinstance(message, Call) and message.result.set_running_or_notify_cancel():
                message.result.set_exception(EngineStopped(self._refusal))
