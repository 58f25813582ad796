"""Durable requests: they outlive their readers and their process, and are read from any token."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.errors import (
    ConfigError,
    DeadlineExceeded,
    DistKVError,
    QueueFull,
    RequestCancelled,
    RequestError,
    RequestNotFound,
    Unavailable,
)
from serve.ask import Ask
from serve.dispatch import Dispatcher, engine_name
from serve.journal.forms import entry_of
from serve.journal.history import History, cut, full_offsets, history_of
from serve.journal.lock import FolderLock
from serve.journal.store import Kept, Store, read_kept
from serve.journal.writer import OpenRow, Writer
from serve.keys import Caller
from serve.observe.record import Record
from serve.stream import Stream

logger = logging.getLogger(__name__)

MAX_FOLLOWERS = 16
"""Readers of one request at once."""
MODEL = "model"
"""Under which the journal notes whose tokens it has."""
LATER = "the request is durable, attach to it when the server is back"


class Opened(NamedTuple):
    """A journal at the start of a server.

    Attributes:
        lock: Held.
        store: Open.
        unfinished: Requests to go on with.
    """

    lock: FolderLock
    store: Store
    unfinished: list[Kept]


def open_journal(folder: str | Path) -> Opened:
    """Take a folder and open the journal in it; makes both where there are none.

    Raises:
        ConfigError: Another process has it, or it cannot be read.
        OSError: The folder cannot be had.
    """
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as undo:
        lock = FolderLock(path)
        undo.callback(lock.close)
        store = Store(path)
        undo.callback(store.close)
        unfinished = store.unfinished()
        undo.pop_all()
    return Opened(lock, store, unfinished)


def check_journal(folder: str | Path) -> None:
    """Refuse a journal that a server would refuse, before minutes of loading.

    Raises:
        ConfigError: As `open_journal`, or a request in it cannot be read.
        OSError: The folder cannot be had.
    """
    lock, store, unfinished = open_journal(folder)
    try:
        for kept in unfinished:
            history_of(kept, store.path)
    finally:
        store.close()
        lock.close()


class Call:
    """Requests that one call asked for, from the side of who waits for it.

    Attributes:
        is_whole: Whether its reader waits for the end.
        opened: Done when they are accepted and running.
        followers: What its reader reads, one for each.
        has_left: Whether its reader has gone.
    """

    def __init__(self, *, is_whole: bool, has_left: bool = False) -> None:
        self.is_whole = is_whole
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.followers: list[tuple[Stream, Stream]] = []
        self.has_left = has_left


class DurableRequests:
    """Runs requests that are written down before they are answered, each in a task of its own.

    The event loop owns it. A token is on disk before any reader has it; so no reader ever sees
    another one in its place, whatever happens to the process.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        opened: Opened,
        *,
        keep_s: float,
        keep_bytes: int,
        max_unread: int,
        by_default: bool,
    ) -> None:
        """Begin to write; nothing goes on before `resume`.

        Args:
            dispatcher: Where requests go.
            opened: The journal; closed by `close`.
            keep_s: Seconds for which ended requests can be attached to.
            keep_bytes: Bytes of ended requests that are kept at most.
            max_unread: Tokens kept for a reader that takes none.
            by_default: Whether a request is durable that does not say.

        Raises:
            ConfigError: It has unfinished requests of another model.
        """
        self.by_default = by_default
        self._dispatcher = dispatcher
        self._lock, self._store, self._unfinished = opened
        self._max_unread = max_unread
        self._owners: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._check_model()
        thread = dispatcher.llm.thread
        self._writer = Writer(
            self._store,
            {self._name_of(kept): self._row_of(kept) for kept in self._unfinished},
            keep_s=keep_s,
            keep_bytes=keep_bytes,
            has_engine_stopped=lambda: thread.has_stopped,
            hand_on=dispatcher.delivery.sink,
            on_lost=self._on_lost,
        )

    def close(self) -> None:
        """Write what is left and give the journal back; no request runs any more."""
        self._writer.close()
        self._store.close()
        self._lock.close()

    async def resume(self) -> int:
        """Go on with what an earlier process left, as far as it can be; says with how many."""
        calls: list[tuple[str, Call]] = []
        for kept in self._unfinished:
            history = history_of(kept, self._store.path)
            entry = history.entry
            offset = time.monotonic() - time.time()
            ask = Ask(
                prompt=entry.prompt_token_ids,
                params=entry.params,
                request_id=entry.name,
                priority=entry.priority,
                deadline=None if entry.deadline is None else entry.deadline + offset,
                operation="resume",
                resumed=history.known,
            )
            call = Call(is_whole=True, has_left=True)
            self._start(Caller(entry.caller, is_admin=False), [ask], call)
            calls.append((self._name_of(kept), call))
        self._unfinished.clear()
        count = 0
        for name, call in calls:
            try:
                await call.opened
                count += 1
            except (RequestError, DeadlineExceeded) as error:
                logger.warning("durable request %r cannot go on: %s", name, error)
                await asyncio.wrap_future(self._writer.end(name, error))
        return count

    @contextlib.asynccontextmanager
    async def open(self, caller: Caller, ask: Ask, *, is_whole: bool) -> AsyncIterator[Stream]:
        """As `open_all`, for one."""
        async with self.open_all(caller, [ask], is_whole=is_whole) as (stream,):
            yield stream

    @contextlib.asynccontextmanager
    async def open_all(
        self, caller: Caller, asks: Sequence[Ask], *, is_whole: bool
    ) -> AsyncIterator[list[Stream]]:
        """Write requests down and run them; they go on when the `with` is left.

        Args:
            caller: Who asks.
            asks: At least one.
            is_whole: Wake the reader only when all is there.

        Raises:
            DistKVError: As `Dispatcher.open`; `Unavailable` also where the disk does not take it.
        """
        call = Call(is_whole=is_whole)
        self._start(caller, [with_seed(ask) for ask in asks], call)
        try:
            await asyncio.shield(call.opened)
            yield [follower for follower, _ in call.followers]
        finally:
            call.has_left = True
            for follower, relay in call.followers:
                self._part(follower, relay)

    @contextlib.asynccontextmanager
    async def attach(
        self, caller: Caller, request_id: str, offsets: Sequence[int]
    ) -> AsyncIterator[Stream]:
        """Read a request from given tokens on, whether it runs or has ended.

        Args:
            caller: Who asks; requests of others are not found.
            request_id: Which.
            offsets: Tokens of each sample to leave out; 0 where there is no entry.

        Raises:
            RequestNotFound: The caller has none of that name, or it is no longer kept.
            FieldError: An offset is beyond what there is.
            Unavailable: It does not run now, the next start goes on with it.
            QueueFull: Too many read it.
            DistKVError: It ended before its time: why.
        """
        relay = self._dispatcher.stream_of(caller, request_id)
        if relay is None or not relay.is_relay or relay.has_ended or relay.has_failed:
            yield await self._recall(caller, request_id, offsets)
            return
        if not relay.has_begun:
            raise Unavailable(f"request_id {request_id!r} is being accepted, ask again")
        if len(relay.followers) >= MAX_FOLLOWERS:
            raise QueueFull(f"{MAX_FOLLOWERS} read request_id {request_id!r}, limit as many")
        # What is known here is on disk; what comes from now on comes to the follower.
        reach = relay.reach
        full = full_offsets(offsets, reach)
        follower = self._follow(relay, max_unread=self._max_unread)
        try:
            history = await asyncio.to_thread(self._read, caller, request_id)
            if history is None:
                raise RequestNotFound(f"request_id {request_id!r} has ended and is forgotten")
            follower.precede(await asyncio.to_thread(cut, history.updates, full, reach))
            yield follower
        finally:
            self._part(follower, relay)

    async def abort(self, caller: Caller, request_id: str) -> bool:
        """End a caller's request, so that no start goes on with it; False where none runs.

        Raises:
            Unavailable: The disk does not take it: it goes on at the next start.
        """
        relay = self._dispatcher.stream_of(caller, request_id)
        if relay is None or not relay.is_relay or relay.has_ended or relay.has_failed:
            return False
        error = RequestCancelled("the request was aborted")
        await asyncio.wrap_future(self._writer.end(relay.name, error))
        with contextlib.suppress(RequestNotFound):  # it ended meanwhile
            self._dispatcher.abort(caller, request_id)
        return True

    async def leave(self) -> int:
        """Stop those that run and leave them to the next start; says how many they are."""
        left = [stream for stream in self._dispatcher.relays() if not stream.has_ended]
        for stream in left:
            stream.fail(Unavailable(f"the server was stopped: {LATER}"))
        await asyncio.gather(*self._owners, return_exceptions=True)
        return len(left)

    def _start(self, caller: Caller, asks: Sequence[Ask], call: Call) -> None:
        owner = asyncio.create_task(self._own(caller, asks, call))
        self._owners.add(owner)
        owner.add_done_callback(self._owners.discard)

    async def _own(self, caller: Caller, asks: Sequence[Ask], call: Call) -> None:
        """Be the one for whom requests run, until they have ended."""
        submit = functools.partial(self._submit, call)
        try:
            async with self._dispatcher.open_all(
                caller, asks, is_whole=True, submit=submit
            ) as relays:
                call.opened.set_result(None)
                for relay in relays:
                    try:
                        await relay.take()
                    except DistKVError as error:
                        # Its readers are told; others of the same call go on.
                        relay.record.error = error
        except Exception as error:
            if call.opened.done():
                raise
            call.opened.set_exception(error)
            if call.has_left:
                call.opened.exception()  # nobody else will ask

    async def _submit(
        self,
        call: Call,
        requests: Sequence[Request],
        relays: Sequence[Stream],
        deadline: float | None,
    ) -> None:
        """Write requests down, unless they are, and hand them to the engine."""
        new = [
            (stream.name, entry_of(one, caller=stream.record.caller, name=stream.record.request_id))
            for one, stream in zip(requests, relays, strict=True)
            if not one.resumed
        ]
        if new:
            # Not given up half-way: then nobody would know whether it is written.
            await asyncio.wrap_future(self._writer.accept(new))
        for relay, request in zip(relays, requests, strict=True):
            relay.begin(request)
            if not call.has_left:
                most = None if call.is_whole else self._max_unread
                call.followers.append((self._follow(relay, max_unread=most), relay))
        try:
            await self._dispatcher.submit(requests, relays, deadline, self._writer.sink)
        except BaseException:
            if new:
                self._writer.withdraw([name for name, _ in new])
            raise

    def _follow(self, relay: Stream, *, max_unread: int | None) -> Stream:
        follower = Stream(relay.name, relay.record, max_unread=max_unread)
        follower.follow(relay)
        self._dispatcher.delivery.listen(relay)
        return follower

    def _part(self, follower: Stream, relay: Stream) -> None:
        if follower in relay.followers:
            relay.followers.remove(follower)
        if self._dispatcher.is_open(relay):
            self._dispatcher.delivery.listen(relay)

    async def _recall(self, caller: Caller, request_id: str, offsets: Sequence[int]) -> Stream:
        """Make a stream of what is kept of a request that does not run."""
        history = await asyncio.to_thread(self._read, caller, request_id)
        if history is None:
            raise RequestNotFound(f"request_id {request_id!r} is of no durable request of yours")
        if history.error is not None:
            raise history.error
        if not history.has_ended:
            raise Unavailable(f"request_id {request_id!r} does not run now: {LATER}")
        entry, reach = history.entry, history.reach
        full = full_offsets(offsets, reach)
        record = Record(
            request_id=request_id,
            caller=caller.name,
            operation="attach",
            params=entry.params,
            carrier={},
            num_prompt_tokens=len(entry.prompt_token_ids),
        )
        pieces = await asyncio.to_thread(retold, history, record, full)
        request = Request(
            request_id=request_id, prompt_token_ids=entry.prompt_token_ids, params=entry.params
        )
        stream = Stream(request_id, record, max_unread=self._max_unread)
        stream.recall(request, reach, pieces)
        return stream

    def _read(self, caller: Caller, request_id: str) -> History | None:
        """Read a request from the file; called in a thread.

        Raises:
            Unavailable: The disk does not give it.
        """
        try:
            kept = read_kept(self._store.path, caller.name, request_id)
        except sqlite3.Error as error:
            raise Unavailable(f"the journal cannot be read: {error}") from error
        return None if kept is None else history_of(kept, self._store.path)

    def _on_lost(self, names: Sequence[str], error: DistKVError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under the engine
            self._loop.call_soon_threadsafe(self._fail, frozenset(names), error)

    def _fail(self, names: frozenset[str], error: DistKVError) -> None:
        for stream in self._dispatcher.relays():
            if stream.name in names and stream.has_begun:
                stream.fail(Unavailable(f"{error}: {LATER}"))

    def _check_model(self) -> None:
        llm = self._dispatcher.llm
        ours = f"{llm.model_config}, KV in {llm.config.kv_cache_dtype}"
        theirs = self._store.about(MODEL)
        if self._unfinished and theirs != ours:
            raise ConfigError(
                f"journal {self._store.path} has {len(self._unfinished)} unfinished requests of "
                f"another model: {theirs}; this server has {ours}"
            )
        if theirs != ours:
            with self._store.transaction():
                self._store.note(MODEL, ours)

    def _name_of(self, kept: Kept) -> str:
        return engine_name(Caller(kept.caller, is_admin=False), kept.name)

    def _row_of(self, kept: Kept) -> OpenRow:
        known = history_of(kept, self._store.path).known
        return OpenRow(
            kept.id,
            {index for index, one in enumerate(known) if not one.has_ended},
            num_pieces=len(kept.pieces),
            num_bytes=len(kept.entry) + sum(map(len, kept.pieces)),
        )


def retold(history: History, record: Record, full: Sequence[int]) -> list[Update]:
    """Tell a record what a request gave, and cut off what is before some offsets; takes long."""
    for update in history.updates:
        record.hear(update, record.arrival)
    return cut(history.updates, full, history.reach)


def with_seed(ask: Ask) -> Ask:
    """Give a request that has no seed one, so that it goes on as it began."""
    if ask.params.seed is not None:
        return ask
    return ask._replace(params=dataclasses.replace(ask.params, seed=secrets.randbits(63)))


def is_durable(asked: bool | None, journal: DurableRequests | None) -> bool:
    """Say whether a request is durable.

    Args:
        asked: As the request says; None where it does not.
        journal: The server's; None where it has none.

    Raises:
        ConfigError: It should be, and there is no journal.
    """
    if journal is None:
        if asked:
            raise ConfigError("durable=true needs a journal: start the server with --journal DIR")
        return False
    return journal.by_default if asked is None else asked
