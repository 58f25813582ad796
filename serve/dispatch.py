"""Between RPCs and the engine's thread: names, quotas, one hand-over a step, and the drain."""

import asyncio
import collections
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.prompt import Prompt
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import (
    DistKVError,
    DuplicateRequest,
    RequestCancelled,
    RequestNotFound,
    Unavailable,
)
from distkv_jax.llm import LLM
from serve.keys import Caller
from serve.observe.record import Observer, Record
from serve.quota import Quota
from serve.stream import Stream

logger = logging.getLogger(__name__)

SMALL_PROMPT = 2048
"""Characters or tokens of a prompt that is tokenised and checked on the event loop; longer ones
have a thread, so that they do not hold up everybody's tokens."""


class Ask(NamedTuple):
    """A request before it is tokenised.

    Attributes:
        prompt: Text or token ids.
        params: How to sample.
        request_id: As the caller named it; empty takes a new name.
        priority: Lower first.
        deadline: `time.monotonic()`, or None.
        operation: As in `Record`.
        carrier: As in `Record`.
    """

    prompt: Prompt
    params: SamplingParams
    request_id: str = ""
    priority: int = 0
    deadline: float | None = None
    operation: str = ""
    carrier: Mapping[str, str] = MappingProxyType({})


class Dispatcher:
    """Submits requests to an engine and brings each one's updates to its `Stream`.

    The event loop owns it; only `_sink` runs on the engine's thread, and does nothing there but
    hand over. Callers cannot see each other's names: the engine's are `CALLER/NAME`.
    """

    def __init__(
        self, llm: LLM, quota: Quota, *, max_unread: int, observers: Sequence[Observer] = ()
    ) -> None:
        """Begin with no request; needs a running event loop.

        Args:
            llm: Whose engine serves.
            quota: What is under way.
            max_unread: Tokens kept for a reader that takes none.
            observers: Who hears of every request.
        """
        self.llm = llm
        self.quota = quota
        self._max_unread = max_unread
        self._observers = tuple(observers)
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        self._names: set[str] = set()
        # Those to be woken by any update; the others wait for their first token or their end.
        self._eager: set[str] = set()
        self._waiting: dict[str, tuple[Caller, int]] = {}
        self._groups: collections.deque[tuple[float, list[Update]]] = collections.deque()
        self._failure: DistKVError | None = None
        self._refusal: str | None = None
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._refusal is not None

    def refuse(self, why: str) -> None:
        """Take no more requests; those under way go on."""
        self._refusal = why

    async def wait_empty(self) -> None:
        """Wait until no request is under way."""
        await self._is_empty.wait()

    def fail_all(self, error: DistKVError) -> int:
        """End every request with an error, those too that are being tokenised; says how many."""
        self._failure = error
        for name, stream in self._streams.items():
            stream.fail(error)
            self.llm.thread.cancel(name)
        return len(self._names)

    def abort(self, caller: Caller, request_id: str) -> None:
        """End a caller's request.

        Raises:
            RequestNotFound: It has no live one of that name.
        """
        name = engine_name(caller, request_id)
        stream = self._streams.get(name)
        if stream is None or stream.has_ended:
            raise RequestNotFound(f"request_id {request_id!r} is of no live request of yours")
        stream.fail(RequestCancelled("the request was aborted"))
        self.llm.thread.cancel(name)

    @contextlib.asynccontextmanager
    async def open(self, caller: Caller, ask: Ask, *, is_whole: bool) -> AsyncIterator[Stream]:
        """Submit a request, and cancel it if the `with` is left before it has ended.

        Args:
            caller: Who asks.
            ask: What.
            is_whole: Wake the reader only when all is there.

        Raises:
            RequestError: It can never be served, or its name is in use.
            QueueFull: Too many are under way.
            Unavailable: The server takes no more requests.
        """
        record = Record(
            request_id=ask.request_id or f"gen-{secrets.token_hex(8)}",
            caller=caller.name,
            operation=ask.operation,
            params=ask.params,
            carrier=ask.carrier,
        )
        with self._observed(record), contextlib.ExitStack() as undo:
            if self._refusal is not None:
                raise Unavailable(self._refusal)
            name = engine_name(caller, record.request_id)
            if name in self._names:
                raise DuplicateRequest(f"request_id {ask.request_id!r} is in use by a live request")
            self.quota.begin(caller)
            undo.callback(self.quota.end, caller)
            self._names.add(name)
            self._is_empty.clear()
            undo.callback(self._forget, name)
            request = await self._make_request(name, ask)
            if self._failure is not None:
                raise self._failure
            record.num_prompt_tokens = num_tokens = len(request.prompt_token_ids)
            self.quota.wait(caller, num_tokens)
            self._waiting[name] = (caller, num_tokens)
            undo.callback(self._stop_waiting, name)
            stream = Stream(request, record, max_unread=None if is_whole else self._max_unread)
            self._streams[name] = stream
            if not is_whole:
                self._eager.add(name)
            undo.callback(self._leave, stream)
            submitted = self.llm.thread.submit_soon([request], self._sink)
            await asyncio.wrap_future(submitted)
            yield stream

    @contextlib.contextmanager
    def _observed(self, record: Record) -> Iterator[None]:
        self._tell(Observer.on_begin, record)
        try:
            yield
        except BaseException as error:
            record.error = error
            raise
        finally:
            if record.end is None:
                record.end = time.monotonic()
            self._tell(Observer.on_end, record)

    def _tell(self, event: Callable[..., None], record: Record, *values: Any) -> None:
        """Call an observers' method of the name that `event` has in `Observer`."""
        for observer in self._observers:
            try:
                getattr(observer, event.__name__)(record, *values)
            except Exception:
                logger.exception("an observer failed")

    async def _make_request(self, name: str, ask: Ask) -> Request:
        def make() -> Request:
            return self.llm.make_request(
                ask.prompt,
                ask.params,
                request_id=name,
                priority=ask.priority,
                deadline=ask.deadline,
            )

        size = len(ask.prompt)
        return make() if size <= SMALL_PROMPT else await asyncio.to_thread(make)

    def _sink(self, group: list[Update]) -> None:
        """Hand a step's updates over; called on the engine's thread, once a step.

        The loop is woken only if somebody waits for one of them: each time costs the engine a
        part of a millisecond.
        """
        self._groups.append((time.monotonic(), group))
        if any(self._is_awaited(update) for update in group):
            with contextlib.suppress(RuntimeError):  # the loop was closed under the engine
                self._loop.call_soon_threadsafe(self._distribute)

    def _is_awaited(self, update: Update) -> bool:
        name = update.request.request_id
        return update.finish_reason is not None or name in self._eager or name in self._waiting

    def catch_up(self) -> None:
        """Tell observers of what came since the loop was last woken."""
        self._distribute()

    def _distribute(self) -> None:
        while self._groups:
            self._distribute_group(*self._groups.popleft())

    def _distribute_group(self, now: float, group: list[Update]) -> None:
        for update in group:
            name = update.request.request_id
            stream = self._streams.get(name)
            # Another one of the same name may have come since.
            if stream is None or stream.request is not update.request:
                continue
            had_failed = stream.has_failed
            self._observe(stream.record, update, now)
            stream.add(update)
            self._stop_waiting(name)
            if stream.has_failed and not had_failed:
                # Of several samples one may have failed alone, or nobody reads them.
                self.llm.thread.cancel(name)

    def _observe(self, record: Record, update: Update, now: float) -> None:
        is_first = record.first_token is None
        gap = record.hear(update, now)
        if is_first and record.first_token is not None:
            self._tell(Observer.on_first_token, record)
        elif gap is not None:
            self._tell(Observer.on_gap, record, gap)

    def _stop_waiting(self, name: str) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            self.quota.stop_waiting(*waiting)

    def _leave(self, stream: Stream) -> None:
        """Let go of a stream; its request ends if it has not."""
        name = stream.request.request_id
        del self._streams[name]
        self._eager.discard(name)
        if not stream.has_ended:
            self.llm.thread.cancel(name)

    def _forget(self, name: str) -> None:
        self._names.remove(name)
        if not self._names:
            self._is_empty.set()


def engine_name(caller: Caller, request_id: str) -> str:
    """Name a request as the engine knows it; callers without a name have no prefix."""
    return f"{caller.name}/{request_id}" if caller.name else request_id
