"""The journal's file: requests, what they gave, and how they ended, in sqlite's transactions."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from distkv_jax.errors import ConfigError

NAME = "journal.sqlite3"
APPLICATION = 0x444B564A
"""Says in the file's head whose it is."""
VERSION = 1
BUSY_S = 5.0
"""A reader may hold the file for a moment; no other process writes."""
# A piece is what one transaction gave to one request, so that a token costs no row of its own.
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    caller TEXT NOT NULL,
    name TEXT NOT NULL,
    entry TEXT NOT NULL,
    ended REAL,
    error TEXT,
    num_bytes INTEGER,
    UNIQUE (caller, name)
) STRICT;
CREATE INDEX by_end ON requests (ended) WHERE ended IS NOT NULL;
CREATE TABLE pieces (
    request INTEGER NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    updates TEXT NOT NULL,
    PRIMARY KEY (request, number)
) STRICT, WITHOUT ROWID;
"""


class Kept(NamedTuple):
    """A request as it is in the file.

    Attributes:
        id: Of its row.
        caller: Whose.
        name: As its caller named it.
        entry: As `text_of_entry` wrote it.
        ended: Seconds since 1970; None while it runs.
        error: As `text_of_error` wrote it; None where it ended as it should, or runs.
        pieces: As `text_of_updates` wrote them, in their order.
    """

    id: int
    caller: str
    name: str
    entry: str
    ended: float | None
    error: str | None
    pieces: tuple[str, ...]


class Store:
    """The one who writes a journal; one thread uses it.

    Invariant: a transaction is on disk as a whole or not at all, in the order they were made:
    what a crash leaves is what some transaction had left, never less than the last that returned.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file of a folder, or make it.

        Raises:
            ConfigError: It is something else, of another release, or damaged.
        """
        self.path = folder / NAME
        # Prompts are nobody else's business; sqlite gives its other files the mode of this one.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        self._db = sqlite3.connect(
            self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._check()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(f"journal {self.path} cannot be read: {error}") from error
        except ConfigError:
            self._db.close()
            raise

    def _check(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (count,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not count and not application:
            with self.transaction():
                for statement in SCHEMA.strip().split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={APPLICATION}")
                self._db.execute(f"PRAGMA user_version={VERSION}")
            return
        if application != APPLICATION:
            raise ConfigError(f"journal {self.path} is a database of another program")
        if version != VERSION:
            raise ConfigError(
                f"journal {self.path} has version {version}, this release reads {VERSION}"
            )
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise ConfigError(f"journal {self.path} is damaged: {verdict}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do several things as one; on disk when the `with` is left.

        Raises:
            sqlite3.Error: The disk did not take it; the file is as it was.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # Some errors, a full disk among them, have rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def about(self, name: str) -> str | None:
        """Read what was noted about the journal itself."""
        row = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def note(self, name: str, value: str) -> None:
        """Note something about the journal itself."""
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    def accept(self, caller: str, name: str, entry: str) -> int | None:
        """Add a request; None where the caller has one of that name."""
        found = self._db.execute(
            "INSERT INTO requests (caller, name, entry) VALUES (?, ?, ?) "
            "ON CONFLICT DO NOTHING RETURNING id",
            (caller, name, entry),
        ).fetchone()
        return None if found is None else found[0]

    def append(self, request: int, number: int, updates: str) -> None:
        """Add to what a request gave."""
        self._db.execute("INSERT INTO pieces VALUES (?, ?, ?)", (request, number, updates))

    def end(self, request: int, now: float, error: str | None, num_bytes: int) -> None:
        """End a request; it is kept for those who still want to read it."""
        self._db.execute(
            "UPDATE requests SET ended = ?, error = ?, num_bytes = ? WHERE id = ?",
            (now, error, num_bytes, request),
        )

    def remove(self, request: int) -> None:
        """Forget a request."""
        self._db.execute("DELETE FROM requests WHERE id = ?", (request,))

    def expire(self, before: float, *, max_requests: int, max_bytes: int) -> int:
        """Forget requests that ended before a time, and the oldest beyond a number or a size.

        Returns:
            How many.
        """
        # Newest first, each with what it and those after it take together.
        return self._db.execute(
            """
            DELETE FROM requests WHERE id IN (
                SELECT id FROM (
                    SELECT id, ended,
                        row_number() OVER newest AS place,
                        sum(num_bytes) OVER newest AS total
                    FROM requests WHERE ended IS NOT NULL
                    WINDOW newest AS (ORDER BY ended DESC, id DESC ROWS UNBOUNDED PRECEDING)
                ) WHERE ended < ? OR place > ? OR total > ?
            )
            """,
            (before, max_requests, max_bytes),
        ).rowcount

    def unfinished(self) -> list[Kept]:
        """Read the requests that have not ended, in the order in which they came."""
        rows = self._db.execute("SELECT id FROM requests WHERE ended IS NULL ORDER BY id")
        return [_kept(self._db, "id = ?", (number,)) for (number,) in rows.fetchall()]


def read_kept(path: Path, caller: str, name: str) -> Kept | None:
    """Read a caller's request from any thread, as the last transaction left it.

    Raises:
        sqlite3.Error: The disk does not give it.
    """
    address = f"file:{quote(str(path))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_S)) as db:
        db.execute("BEGIN")
        found = db.execute(
            "SELECT 1 FROM requests WHERE caller = ? AND name = ?", (caller, name)
        ).fetchone()
        return None if found is None else _kept(db, "caller = ? AND name = ?", (caller, name))


def _kept(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Kept:
    row = db.execute(
        f"SELECT id, caller, name, entry, ended, error FROM requests WHERE {where}", values
    ).fetchone()
    number, caller, name, entry, ended, error = row
    pieces = db.execute("SELECT updates FROM pieces WHERE request = ? ORDER BY number", (number,))
    given = tuple(updates for (updates,) in pieces)
    return Kept(number, caller, name, entry, ended, error, given)
