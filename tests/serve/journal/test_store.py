"""The file is what some transaction left: the last that returned, whatever stopped its writer."""

import random
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkv_jax.errors import ConfigError
from serve.journal.lock import FolderLock
from serve.journal.requests import open_journal
from serve.journal.store import NAME, Store, read_kept

State = dict[str, tuple[tuple[str, ...], bool]]
"""Of each request what it gave, and whether it has ended."""


def state_of(folder: Path) -> State:
    """Read all there is, as a start after a crash does."""
    store = Store(folder)
    found = {}
    for (name,) in store._db.execute("SELECT name FROM requests").fetchall():
        kept = read_kept(store.path, "", name)
        assert kept is not None
        found[name] = (kept.pieces, kept.ended is not None)
    store.close()
    return found


def write(folder: Path, num_transactions: int, seed: int) -> list[State]:
    """Write random histories and leave without closing; gives the state after each transaction."""
    store, rng = Store(folder), random.Random(seed)
    ids: dict[str, int] = {}
    state: State = {}
    states = [dict(state)]
    for at in range(num_transactions):
        with store.transaction():
            for _ in range(rng.randint(1, 3)):
                running = [name for name, (_, has_ended) in state.items() if not has_ended]
                if not running or rng.random() < 0.3:
                    name = f"r{len(ids)}"
                    number = store.accept("", name, "{}")
                    assert number is not None
                    ids[name], state[name] = number, ((), False)
                    continue
                name = rng.choice(running)
                pieces, _ = state[name]
                if rng.random() < 0.2:
                    store.end(ids[name], time.time(), None, 1)
                    state[name] = (pieces, True)
                else:
                    text = f"{at}-{'x' * rng.randint(0, 3000)}"
                    store.append(ids[name], len(pieces), text)
                    state[name] = ((*pieces, text), False)
        states.append(dict(state))
    # As a killed process leaves it: no checkpoint, the log is there.
    copy = folder.parent / "killed"
    shutil.copytree(folder, copy)
    store.close()
    return states


def test_a_log_that_is_cut_anywhere_leaves_a_state_that_was(tmp_path: Path) -> None:
    """What sqlite promises: whole transactions, in their order, as far as the log is whole."""
    (tmp_path / "journal").mkdir()
    states = write(tmp_path / "journal", 40, seed=1)
    killed = tmp_path / "killed"
    log = (killed / f"{NAME}-wal").read_bytes()
    assert state_of(shutil.copytree(killed, tmp_path / "whole")) == states[-1]

    rng, numbers = random.Random(2), []
    for number, size in enumerate(sorted(rng.randrange(len(log)) for _ in range(40))):
        cut = Path(shutil.copytree(killed, tmp_path / f"cut-{number}"))
        (cut / f"{NAME}-wal").write_bytes(log[:size])
        (cut / f"{NAME}-shm").unlink()
        numbers.append(states.index(state_of(cut)))
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_history_with_failed_transactions_is_that_of_the_others(data: st.DataObject) -> None:
    """A transaction that fails half-way changes nothing, and the ones after it go on."""
    with tempfile.TemporaryDirectory() as folder:
        store, ids, model = Store(Path(folder)), dict[str, int](), dict[str, list[str]]()
        for number in range(data.draw(st.integers(1, 8))):
            actions = data.draw(
                st.lists(st.tuples(st.sampled_from("anre"), st.integers(0, 3)), max_size=4)
            )
            fails = data.draw(st.booleans())
            new_ids, new_model = dict(ids), {name: list(one) for name, one in model.items()}
            try:
                with store.transaction():
                    for action, which in actions:
                        name = f"r{which}"
                        if action == "n":
                            row = store.accept("c", name, "{}")
                            assert (row is None) == (name in new_model)
                            if row is not None:
                                new_ids[name], new_model[name] = row, []
                        elif name in new_model and action == "a":
                            text = f"{number}"
                            store.append(new_ids[name], len(new_model[name]), text)
                            new_model[name].append(text)
                        elif name in new_model and action == "r":
                            store.remove(new_ids.pop(name))
                            del new_model[name]
                    if fails:
                        raise sqlite3.OperationalError("database or disk is full")
            except sqlite3.OperationalError:
                continue
            ids, model = new_ids, new_model
        left = {kept.name: list(kept.pieces) for kept in store.unfinished()}
        assert left == model
        store.close()


def test_ended_requests_are_kept_for_a_time_a_number_and_a_size(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for at in range(6):
        with store.transaction():
            number = store.accept("", f"r{at}", "{}")
            assert number is not None
            store.append(number, 0, "[]")
            if at < 5:
                store.end(number, 100.0 + at, None, num_bytes=10)

    def left(before: float, max_requests: int = 9, max_bytes: int = 99) -> list[str]:
        with store.transaction():
            store.expire(before, max_requests=max_requests, max_bytes=max_bytes)
        return [name for at in range(6) if read_kept(store.path, "", name := f"r{at}")]

    assert left(101.0) == ["r1", "r2", "r3", "r4", "r5"]
    assert left(0.0, max_requests=3) == ["r2", "r3", "r4", "r5"]
    assert left(0.0, max_bytes=25) == ["r3", "r4", "r5"]
    assert left(1e12) == ["r5"]
    # What they gave went with them.
    assert store._db.execute("SELECT count(*) FROM pieces").fetchone() == (1,)
    store.close()


def test_a_folder_has_one_server_and_a_dead_one_leaves_it(tmp_path: Path) -> None:
    opened = open_journal(tmp_path)
    with pytest.raises(ConfigError, match=r"is in use by process \d+ on \S+ since .*one server"):
        open_journal(tmp_path)
    opened.store.close()
    opened.lock.close()
    assert (tmp_path / "lock").exists()

    FolderLock(tmp_path).close()


def test_what_is_no_journal_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"This is a text about something else. " * 99)
    with pytest.raises(ConfigError, match="cannot be read: file is not a database"):
        open_journal(tmp_path)

    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    db.close()
    with pytest.raises(ConfigError, match="is a database of another program"):
        open_journal(tmp_path)

    path.unlink()
    lock, store, _ = open_journal(tmp_path)
    store._db.execute("PRAGMA user_version=7")
    store.close()
    lock.close()
    with pytest.raises(ConfigError, match="has version 7, this release reads 1"):
        open_journal(tmp_path)


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    lock, store, _ = open_journal(tmp_path / "new")
    with store.transaction():
        store.note("a", "b")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "new").iterdir()} == {0}
    store.close()
    lock.close()
