"""Between RPCs and the engine's thread: names, quotas, and the drain."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.thread import Sink
from distkv_jax.errors import (
    DistKVError,
    DuplicateRequest,
    RequestCancelled,
    RequestError,
    RequestNotFound,
    Unavailable,
)
from distkv_jax.llm import LLM
from serve.ask import SMALL_PROMPT, Ask
from serve.delivery import Delivery
from serve.journal.forms import kept_text
from serve.keys import Caller
from serve.observe.audience import Audience
from serve.observe.context import serving
from serve.observe.record import Observer, Record
from serve.quota import Quota
from serve.stream import Stream

Submit = Callable[[Sequence[Request], Sequence[Stream], float | None], Awaitable[None]]
"""Hands tokenised requests to the engine, for their streams and until their deadline."""


class Dispatcher:
    """Submits requests to an engine, and brings each one's updates to its `Stream`.

    The event loop owns it. Callers cannot see each other's names: the engine's are `CALLER/NAME`.
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
        self._streams: dict[str, Stream] = {}
        self._waiting: dict[str, tuple[Caller, int]] = {}
        self.delivery = Delivery(
            self._streams,
            self._waiting,
            stream_interval_s=stream_interval_s,
            hear=self._hear,
        )
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
        self,
        caller: Caller,
        asks: Sequence[Ask],
        *,
        is_whole: bool,
        submit: Submit | None = None,
    ) -> AsyncIterator[list[Stream]]:
        """Submit requests with one hand-over to the engine; if one is refused none goes on.

        Args:
            caller: Who asks.
            asks: At least one.
            is_whole: As for `open`.
            submit: Calls `submit` in its own way, for streams that relay; None for none.

        Raises:
            DistKVError: As `open` does; a note says of which prompt it is.
        """
        records = [self._record_of(caller, ask) for ask in asks]
        with serving(records[0].request_id), contextlib.ExitStack() as undo:
            # All have their names before the first is tokenised.
            most = None if is_whole else self._max_unread
            streams = [
                self._admit(caller, record, ask, undo, max_unread=most, is_relay=bool(submit))
                for record, ask in zip(records, asks, strict=True)
            ]
            requests: list[Request] = []
            for number, (stream, ask) in enumerate(zip(streams, asks, strict=True)):
                try:
                    request = await self._make_request(stream, ask)
                except RequestError as error:
                    if len(asks) > 1:
                        error.add_note(f"in prompt {number} of {len(asks)}; none was answered")
                    raise
                stream.record.num_prompt_tokens = num_tokens = len(request.prompt_token_ids)
                self.quota.wait(caller, num_tokens, is_resumed=bool(ask.resumed))
                self._waiting[stream.name] = (caller, num_tokens)
                undo.callback(self._stop_waiting, stream.name)
                self.delivery.listen(stream)
                requests.append(request)
            await (submit or self.submit)(requests, streams, asks[0].deadline)
            yield streams

    async def submit(
        self,
        requests: Sequence[Request],
        streams: Sequence[Stream],
        deadline: float | None,
        sink: Sink | None = None,
    ) -> None:
        """Hand requests to the engine.

        Args:
            requests: Tokenised.
            streams: Theirs, opened by `open_all`.
            deadline: Until when to wait.
            sink: Takes their updates before the delivery does, and hands them on to it.

        Raises:
            DistKVError: They are refused.
        """
        submitted = self.llm.thread.submit_soon(requests, sink or self.delivery.sink)
        for stream, request in zip(streams, requests, strict=True):
            stream.begin(request)
        await streams[0].prepare(asyncio.wrap_future(submitted), deadline)

    def stream_of(self, caller: Caller, request_id: str) -> Stream | None:
        """Find the stream of a caller's live request."""
        stream = self._streams.get(engine_name(caller, request_id))
        return None if stream is None or stream.record.caller != caller.name else stream

    def is_open(self, stream: Stream) -> bool:
        """Whether a stream's request is still under way here."""
        return self._streams.get(stream.name) is stream

    def relays(self) -> list[Stream]:
        """List the streams of live requests that outlive their readers."""
        return [stream for stream in self._streams.values() if stream.is_relay]

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
            num_tokens=sum(len(one.token_ids) for one in ask.resumed),
        )

    def _admit(
        self,
        caller: Caller,
        record: Record,
        ask: Ask,
        undo: contextlib.ExitStack,
        *,
        max_unread: int | None,
        is_relay: bool,
    ) -> Stream:
        """Count a request in, by its name and its caller's quota, until `undo` is left."""
        undo.enter_context(self._observed(record))
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        name = engine_name(caller, record.request_id)
        if (other := self._streams.get(name)) is not None:
            text = f"request_id {record.request_id!r} is in use by a live request"
            raise DuplicateRequest(kept_text(record.request_id) if other.is_relay else text)
        self.quota.begin(caller, is_resumed=bool(ask.resumed))
        undo.callback(self.quota.end, caller)
        stream = Stream(name, record, max_unread=max_unread, is_relay=is_relay)
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
                resumed=ask.resumed,
            )

        if ask.size <= SMALL_PROMPT:
            return make()
        # A thread cannot be stopped: it may finish in vain, one that waits for its turn does not.
        return await stream.prepare(asyncio.to_thread(make), ask.deadline)

    def catch_up(self) -> None:
        """Tell observers of what came since the loop was last woken."""
        self.delivery.distribute()

    def _hear(self, stream: Stream, update: Update, now: float) -> None:
        had_failed = stream.has_failed
        self._observe(stream.record, update, now)
        stream.add(update)
        self._stop_waiting(stream.name)
        if stream.has_failed and not had_failed:
            # Of several samples one may have failed alone, or nobody reads them.
            self.llm.thread.cancel(stream.name)

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
        self.delivery.leave(stream)
        if not self._streams:
            self._is_empty.set()
        if stream.has_begun and not stream.has_ended:
            self.llm.thread.cancel(stream.name)


def engine_name(caller: Caller, request_id: str) -> str:
    """Name a request as the engine knows it; callers without a name have no prefix."""
    return f"{caller.name}/{request_id}" if caller.name else request_id
