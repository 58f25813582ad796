"""Between RPCs and the engine's thread: names, quotas, one hand-over a step, and the drain."""

import asyncio
import collections
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.prompt import Prompt
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import (
    DistKVError,
    DuplicateRequest,
    RequestCancelled,
    RequestError,
    RequestNotFound,
    Unavailable,
)
from distkv_jax.llm import LLM
from serve.keys import Caller
from serve.observe.audience import Audience
from serve.observe.context import serving
from serve.observe.record import Observer, Record
from serve.pace import Pace
from serve.quota import Quota
from serve.stream import Stream

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
        arrival: `time.monotonic()` when it came, before it was read; None for now.
        chat: Messages of which the model's template makes the prompt; empty for none.
    """

    prompt: Prompt
    params: SamplingParams
    request_id: str = ""
    priority: int = 0
    deadline: float | None = None
    operation: str = ""
    carrier: Mapping[str, str] = MappingProxyType({})
    arrival: float | None = None
    chat: Sequence[Mapping[str, str]] = ()

    @property
    def size(self) -> int:
        """Characters or tokens of the prompt."""
        return sum(len(one["content"]) for one in self.chat) or len(self.prompt)


class Dispatcher:
    """Submits requests to an engine and brings each one's updates to its `Stream`.

    The event loop owns it; only `_sink` runs on the engine's thread, and does nothing there but
    hand over. Callers cannot see each other's names: the engine's are `CALLER/NAME`.
    """

    def __init__(
        self,
        llm: LLM,
        quota: Quota,
        *,
        max_unread: int,
        stream_interval_s: float,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Begin with no request; needs a running event loop.

        Args:
            llm: Whose engine serves.
            quota: What is under way.
            max_unread: Tokens kept for a reader that takes none.
            stream_interval_s: Seconds between two pieces of a stream at least.
            observers: Who hears of every request.
        """
        self.llm = llm
        self.quota = quota
        self._max_unread = max_unread
        self._audience = Audience(observers)
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        # Those that read along; the others wait for their end.
        self._eager: set[str] = set()
        self._unread: set[Stream] = set()
        self._pace = Pace(stream_interval_s)
        self._next_round = 0.0
        self._is_woken = False
        self._waiting: dict[str, tuple[Caller, int]] = {}
        self._groups: collections.deque[tuple[float, list[Update]]] = collections.deque()
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
        for name, stream in self._streams.items():
            stream.fail(error)
            self.llm.thread.cancel(name)
        return len(self._streams)

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
        async with self.open_all(caller, [ask], is_whole=is_whole) as (stream,):
            yield stream

    @contextlib.asynccontextmanager
    async def open_all(
        self, caller: Caller, asks: Sequence[Ask], *, is_whole: bool
    ) -> AsyncIterator[list[Stream]]:
        """Submit requests with one hand-over to the engine; if one is refused none goes on.

        Args:
            caller: Who asks.
            asks: At least one.
            is_whole: As for `open`.

        Raises:
            DistKVError: As `open` does; a note says of which prompt it is.
        """
        records = [self._record_of(caller, ask) for ask in asks]
        with serving(records[0].request_id), contextlib.ExitStack() as undo:
            # All have their names before the first is tokenised.
            streams = [self._admit(caller, record, undo, is_whole=is_whole) for record in records]
            requests: list[Request] = []
            for number, (stream, ask) in enumerate(zip(streams, asks, strict=True)):
                try:
                    request = await self._make_request(stream, ask)
                except RequestError as error:
                    if len(asks) > 1:
                        error.add_note(f"in prompt {number} of {len(asks)}; none was answered")
                    raise
                stream.record.num_prompt_tokens = num_tokens = len(request.prompt_token_ids)
                self.quota.wait(caller, num_tokens)
                self._waiting[stream.name] = (caller, num_tokens)
                undo.callback(self._stop_waiting, stream.name)
                if not is_whole:
                    self._eager.add(stream.name)
                requests.append(request)
            submitted = self.llm.thread.submit_soon(requests, self._sink)
            for stream, request in zip(streams, requests, strict=True):
                stream.begin(request)
            await streams[0].prepare(asyncio.wrap_future(submitted), asks[0].deadline)
            yield streams

    def is_live(self, caller: Caller, request_id: str) -> bool:
        """Whether a request of the caller's has this name."""
        return engine_name(caller, request_id) in self._streams

    def _record_of(self, caller: Caller, ask: Ask) -> Record:
        return Record(
            request_id=ask.request_id or f"gen-{secrets.token_hex(8)}",
            caller=caller.name,
            operation=ask.operation,
            params=ask.params,
            carrier=ask.carrier,
            deadline=ask.deadline,
            arrival=time.monotonic() if ask.arrival is None else ask.arrival,
        )

    def _admit(
        self, caller: Caller, record: Record, undo: contextlib.ExitStack, *, is_whole: bool
    ) -> Stream:
        """Count a request in, by its name and its caller's quota, until `undo` is left."""
        undo.enter_context(self._observed(record))
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        name = engine_name(caller, record.request_id)
        if name in self._streams:
            raise DuplicateRequest(f"request_id {record.request_id!r} is in use by a live request")
        self.quota.begin(caller)
        undo.callback(self.quota.end, caller)
        stream = Stream(name, record, max_unread=None if is_whole else self._max_unread)
        self._streams[name] = stream
        self._is_empty.clear()
        undo.callback(self._leave, stream)
        return stream

    @contextlib.contextmanager
    def reading(
        self, caller: Caller, operation: str, *, arrival: float | None = None
    ) -> Iterator[None]:
        """Tell observers of a request that is refused while it is read, before it can be opened.

        Args:
            caller: Who asks.
            operation: As in `Record`.
            arrival: As in `Ask`.
        """
        begin = time.monotonic() if arrival is None else arrival
        try:
            yield
        except Exception as error:
            record = Record(
                request_id=f"gen-{secrets.token_hex(8)}",
                caller=caller.name,
                operation=operation,
                params=None,
                carrier={},
                arrival=begin,
                error=error,
                end=time.monotonic(),
            )
            self._audience.begin(record)
            self._audience.end(record)
            raise

    @contextlib.contextmanager
    def _observed(self, record: Record) -> Iterator[None]:
        self._audience.begin(record)
        try:
            yield
        except BaseException as error:
            record.error = error
            raise
        finally:
            if record.end is None:
                record.end = time.monotonic()
            self._audience.end(record)

    async def _make_request(self, stream: Stream, ask: Ask) -> Request:
        def make() -> Request:
            return self.llm.make_request(
                self.llm.chat_tokens(ask.chat) if ask.chat else ask.prompt,
                ask.params,
                request_id=stream.name,
                priority=ask.priority,
                deadline=ask.deadline,
            )

        if ask.size <= SMALL_PROMPT:
            return make()
        # A thread cannot be stopped: it may finish in vain, one that waits for its turn does not.
        return await stream.prepare(asyncio.to_thread(make), ask.deadline)

    def _sink(self, group: list[Update]) -> None:
        """Hand a step's updates over; called on the engine's thread, once a step.

        The loop is woken only if somebody waits for one of them and nobody has woken it: each
        time costs the engine a part of a millisecond.
        """
        now = time.monotonic()
        self._groups.append((now, group))
        is_round = now >= self._next_round
        if not self._is_woken and any(self._is_awaited(update, is_round) for update in group):
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop was closed under the engine
                self._loop.call_soon_threadsafe(self._distribute)

    def _is_awaited(self, update: Update, is_round: bool) -> bool:
        """Whether somebody waits for an update; readers wait for the next round."""
        name = update.request.request_id
        return (
            update.finish_reason is not None
            or name in self._waiting
            or (is_round and name in self._eager)
        )

    def catch_up(self) -> None:
        """Tell observers of what came since the loop was last woken."""
        self._distribute()

    def _distribute(self) -> None:
        # Before the groups are taken: what comes meanwhile wakes the loop again.
        self._is_woken = False
        while self._groups:
            self._distribute_group(*self._groups.popleft())
        now = self._loop.time()
        if self._unread and now >= self._next_round:
            for stream in self._unread:
                stream.wake()
            self._unread.clear()
            self._next_round = now + self._pace.next_round()
            # Steps before then wake nobody, and there may be none after.
            self._loop.call_at(self._next_round, self._distribute)

    def _distribute_group(self, now: float, group: list[Update]) -> None:
        for update in group:
            name = update.request.request_id
            stream = self._streams.get(name)
            # Another one of the same name may have come since.
            if stream is None or not stream.is_of(update.request):
                continue
            had_failed = stream.has_failed
            self._observe(stream.record, update, now)
            stream.add(update)
            if name in self._eager:
                self._unread.add(stream)
            self._stop_waiting(name)
            if stream.has_failed and not had_failed:
                # Of several samples one may have failed alone, or nobody reads them.
                self.llm.thread.cancel(name)

    def _observe(self, record: Record, update: Update, now: float) -> None:
        is_first = record.first_token is None
        gap = record.hear(update, now)
        if is_first and record.first_token is not None:
            self._audience.first_token(record)
        elif gap is not None:
            self._audience.gap(record, gap)

    def _stop_waiting(self, name: str) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            self.quota.stop_waiting(*waiting)

    def _leave(self, stream: Stream) -> None:
        """Let go of a stream; its request ends if it has not."""
        del self._streams[stream.name]
        self._eager.discard(stream.name)
        self._unread.discard(stream)
        if not self._streams:
            self._is_empty.set()
        if stream.has_begun and not stream.has_ended:
            self.llm.thread.cancel(stream.name)


def engine_name(caller: Caller, request_id: str) -> str:
    """Name a request as the engine knows it; callers without a name have no prefix."""
    return f"{caller.name}/{request_id}" if caller.name else request_id
