"""The thread that writes the journal: all that came while it wrote is one more transaction."""

import dataclasses
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from distkv_jax.engine.outputs import Update
from distkv_jax.errors import (
    DeadlineExceeded,
    DistKVError,
    DuplicateRequest,
    RequestLost,
    Unavailable,
)
from serve.journal.forms import (
    Entry,
    kept_text,
    text_of_entry,
    text_of_error,
    text_of_updates,
)
from serve.journal.store import Store
from serve.stream import OVERDUE

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S = 5.0
"""Between two looks for requests that were kept long enough."""
MAX_KEPT = 10_000
"""Requests that have ended and are kept."""
BROKEN = "the journal cannot be written"


class Accept(NamedTuple):
    """Write requests down: all of them or none."""

    entries: Sequence[tuple[str, Entry]]
    done: "Future[None]"


class Withdraw(NamedTuple):
    """Forget requests that the engine did not take."""

    names: Sequence[str]


class Give(NamedTuple):
    """Write down what a step gave, then hand it on."""

    group: list[Update]


class End(NamedTuple):
    """Write down that a request ended before its time."""

    name: str
    error: DistKVError
    done: "Future[None]"


Message = Accept | Withdraw | Give | End


@dataclasses.dataclass(slots=True)
class OpenRow:
    """A request that has not ended.

    Attributes:
        id: Of its row.
        samples: Those that have not ended.
        num_pieces: Written so far.
        num_bytes: Written so far.
    """

    id: int
    samples: set[int]
    num_pieces: int = 0
    num_bytes: int = 0


class Writer:
    """Writes what comes from the event loop and from the engine, in that order, from one queue.

    What is handed on is on disk. When a transaction fails, the requests in it are not written any
    more: those who read them are told, and their rows stay as they were, to be gone on with by the
    next start.
    """

    def __init__(
        self,
        store: Store,
        open_rows: dict[str, OpenRow],
        *,
        keep_s: float,
        keep_bytes: int,
        has_engine_stopped: Callable[[], bool],
        hand_on: Callable[[list[Update]], None],
        on_lost: Callable[[Sequence[str], DistKVError], None],
    ) -> None:
        """Start the thread.

        Args:
            store: Used by the thread alone from now on.
            open_rows: Of requests that have not ended, by their names in the engine.
            keep_s: Seconds for which ended requests are kept.
            keep_bytes: Bytes of ended requests that are kept.
            has_engine_stopped: Whether an engine's error is its own end, not that of requests.
            hand_on: Takes updates that are on disk; called on the thread.
            on_lost: Hears of requests that cannot be written any more; called on the thread, or on
                the engine's.
        """
        self._store = store
        self._open = open_rows
        self._keep_s, self._keep_bytes = keep_s, keep_bytes
        self._has_engine_stopped = has_engine_stopped
        self._hand_on, self._on_lost = hand_on, on_lost
        self._next_expiry = 0.0
        # Of the transaction at hand: names whose updates were not written.
        self._unwritten: set[str] = set()
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="distkv-journal", daemon=True)
        self._thread.start()

    def accept(self, entries: Sequence[tuple[str, Entry]]) -> "Future[None]":
        """Write requests down, each with its name in the engine, all or none.

        The future raises `DuplicateRequest` where a caller has one of that name, and `Unavailable`
        where the disk does not take it.
        """
        done = uncancellable()
        self._inbox.put(Accept(entries, done))
        return done

    def withdraw(self, names: Sequence[str]) -> None:
        """Forget requests that were written down and then refused."""
        self._inbox.put(Withdraw(names))

    def end(self, name: str, error: DistKVError) -> "Future[None]":
        """End a request before its time; the future raises `Unavailable` as in `accept`."""
        done = uncancellable()
        self._inbox.put(End(name, error, done))
        return done

    def sink(self, group: list[Update]) -> None:
        """Take a step's updates; called on the engine's thread."""
        if self._has_engine_stopped():
            # They have not ended: another engine goes on with them.
            lost = [one.request.request_id for one in group if one.finish_reason is not None]
            self._on_lost(lost, Unavailable("the engine has stopped"))
            return
        self._inbox.put(Give(group))

    def close(self) -> None:
        """Stop the thread when it has written what came."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = self._wait()
            work = [message for message in batch if message is not None]
            if work:
                self._write(work)
            if len(work) < len(batch):
                return

    def _wait(self) -> list[Message | None]:
        """Wait for something, and take all there is; nothing when it is time to expire."""
        try:
            batch = [self._inbox.get(timeout=EXPIRE_EVERY_S)]
        except queue.Empty:
            self._expire()
            return []
        while True:
            try:
                batch.append(self._inbox.get_nowait())
            except queue.Empty:
                return batch

    def _write(self, batch: Sequence[Message]) -> None:
        duplicates: dict[int, DistKVError] = {}
        try:
            with self._store.transaction():
                self._unwritten = set()
                given: dict[str, list[Update]] = {}
                for place, message in enumerate(batch):
                    if isinstance(message, Give):
                        for update in message.group:
                            given.setdefault(update.request.request_id, []).append(update)
                        continue
                    # In the order in which they came, as far as one request sees it.
                    self._give(given)
                    given = {}
                    if (error := self._do(message)) is not None:
                        duplicates[place] = error
                self._give(given)
        except Exception as error:
            # Whatever it is: a thread that ended would leave everybody waiting.
            self._lose(batch, error)
            return
        for place, message in enumerate(batch):
            match message:
                case Give(group):
                    self._hand_on(self._written(group))
                case Accept(done=done) | End(done=done):
                    if (error := duplicates.get(place)) is not None:
                        done.set_exception(error)
                    else:
                        done.set_result(None)
        if time.monotonic() >= self._next_expiry:
            self._expire()

    def _do(self, message: Message) -> DistKVError | None:
        """Write something of the event loop's; gives an error that is its caller's."""
        match message:
            case Accept(entries):
                return self._accept(entries)
            case Withdraw(names):
                for name in names:
                    if (row := self._open.pop(name, None)) is not None:
                        self._store.remove(row.id)
            case End(name, error):
                if (row := self._open.get(name)) is not None:
                    self._end(name, row, text_of_error(error))
        return None

    def _accept(self, entries: Iterable[tuple[str, Entry]]) -> DistKVError | None:
        taken: dict[str, OpenRow] = {}
        for name, entry in entries:
            text = text_of_entry(entry)
            row = self._store.accept(entry.caller, entry.name, text)
            if row is None:
                for other in taken.values():
                    self._store.remove(other.id)
                return DuplicateRequest(kept_text(entry.name))
            taken[name] = OpenRow(row, set(range(entry.params.n)), num_bytes=len(text))
        self._open |= taken
        return None

    def _give(self, given: dict[str, list[Update]]) -> None:
        for name, updates in given.items():
            row = self._open.get(name)
            if row is None:
                self._unwritten.add(name)
                continue
            whole = [one for one in updates if one.finish_reason in (None, "stop", "length")]
            if whole:
                text = text_of_updates(whole)
                self._store.append(row.id, row.num_pieces, text)
                row.num_pieces += 1
                row.num_bytes += len(text)
            row.samples -= {one.index for one in whole if one.finish_reason is not None}
            # A cancel that nobody asked for is no end: `end` is told of those that are.
            broken = [one for one in updates if one.finish_reason in ("deadline", "error")]
            if broken or not row.samples:
                self._end(name, row, text_of_error(error_of(broken[0])) if broken else None)

    def _written(self, group: list[Update]) -> list[Update]:
        """Leave out what belongs to requests that were ended or lost before."""
        if not self._unwritten:
            return group
        return [one for one in group if one.request.request_id not in self._unwritten]

    def _end(self, name: str, row: OpenRow, error: str | None) -> None:
        self._store.end(row.id, time.time(), error, row.num_bytes)
        del self._open[name]

    def _lose(self, batch: Sequence[Message], error: Exception) -> None:
        """The disk did not take a transaction: nobody may see what was in it."""
        logger.error("%s", BROKEN, exc_info=error)
        refusal = Unavailable(f"{BROKEN}: {error}")
        lost: set[str] = set()
        for message in batch:
            if isinstance(message, Give):
                lost |= {update.request.request_id for update in message.group}
            elif isinstance(message, Accept):
                lost |= {name for name, _ in message.entries}
            elif isinstance(message, End):
                lost.add(message.name)
            if isinstance(message, Accept | End):
                message.done.set_exception(refusal)
        # What this transaction changed in memory is of these alone.
        for name in lost:
            self._open.pop(name, None)
        if lost:
            self._on_lost(sorted(lost), refusal)

    def _expire(self) -> None:
        self._next_expiry = time.monotonic() + EXPIRE_EVERY_S
        try:
            with self._store.transaction():
                self._store.expire(
                    time.time() - self._keep_s, max_requests=MAX_KEPT, max_bytes=self._keep_bytes
                )
        except sqlite3.Error as error:
            logger.error("%s: %s", BROKEN, error)


def error_of(update: Update) -> DistKVError:
    """Say how a request ended of which a sample failed."""
    if update.finish_reason == "deadline":
        return DeadlineExceeded(OVERDUE)
    return RequestLost("the request failed, the server's log says why")


def uncancellable() -> "Future[None]":
    """Make a future that its waiter cannot cancel: what is in the queue will be written."""
    made: Future[None] = Future()
    made.set_running_or_notify_cancel()
    return made
