"""What is handed on is on disk; what the disk did not take is never seen."""

import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from distkv_jax.engine.outputs import Logprob, Update
from distkv_jax.engine.request import Known, Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DistKVError, RequestCancelled, Unavailable
from serve.journal.forms import entry_of
from serve.journal.history import history_of
from serve.journal.store import Store, read_kept
from serve.journal.writer import Writer

TIMEOUT_S = 20
PARAMS = SamplingParams(
    n=2, seed=3, stop=["ab\ud800"], logit_bias={4: -1.5}, allowed_token_ids=[4, 5], logprobs=1
)


class Case:
    """A writer of a new journal, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.handed_on: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[tuple[Sequence[str], DistKVError]] = queue.SimpleQueue()
        self.has_stopped = False
        self.writer = Writer(
            self.store,
            {},
            keep_s=60,
            keep_bytes=2**20,
            has_engine_stopped=lambda: self.has_stopped,
            hand_on=self.hand_on,
            on_lost=lambda names, error: self.lost.put((names, error)),
        )

    def hand_on(self, group: list[Update]) -> None:
        # Read from the file by a connection of its own: another process could do it now.
        for update in group:
            name = update.request.request_id
            tokens = self.known(name)[update.index].token_ids
            assert set(update.token_ids) <= set(tokens), name
        self.handed_on.put(group)

    def known(self, name: str) -> tuple[Known, ...]:
        kept = read_kept(self.store.path, "me", name)
        assert kept is not None
        return history_of(kept, self.store.path).known

    def accept(self, name: str) -> Request:
        request = Request(request_id=name, prompt_token_ids=(1, 2), params=PARAMS)
        entry = entry_of(request, caller="me", name=name)
        self.writer.accept([(name, entry)]).result(TIMEOUT_S)
        return request

    def flush(self) -> None:
        """Wait until all that came is written."""
        self.writer.end("nobody", RequestCancelled("x")).result(TIMEOUT_S)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.writer.close()
    case.store.close()


def update_of(request: Request, index: int, token: int, finish: str | None = None) -> Update:
    return Update(request, index, (token,), f"t{token}", finish_reason=finish)


def test_a_request_is_read_as_it_was_written(case: Case) -> None:
    request = case.accept("a")
    logprobs = ({4: Logprob(logprob=-0.1, rank=1, decoded_token="é\ud800")},)
    update = Update(
        request,
        1,
        (4,),
        "é\ud800",
        logprobs,
        prompt_logprobs=(None, {2: Logprob(logprob=-9.0, rank=3, decoded_token=None)}),
        finish_reason="stop",
        stop_reason="ab",
        instances_used=(0, 1),
        remote_kv_tokens=8,
        num_cached_tokens=16,
    )
    case.writer.sink([update])
    case.handed_on.get(timeout=TIMEOUT_S)

    kept = read_kept(case.store.path, "me", "a")
    assert kept is not None
    history = history_of(kept, case.store.path)
    assert history.entry.params == PARAMS
    assert [one._replace(request=request) for one in history.updates] == [update]
    assert not history.has_ended


def test_what_came_while_it_wrote_is_one_transaction(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, append, may_go = case.accept("a"), Store.append, threading.Event()
    appended: list[str] = []

    def slow(store: Store, number: int, place: int, updates: str) -> None:
        assert may_go.wait(TIMEOUT_S)
        appended.append(updates)
        append(store, number, place, updates)

    monkeypatch.setattr(Store, "append", slow)
    for token in range(100):
        case.writer.sink([update_of(request, 0, token)])
    may_go.set()
    groups = [case.handed_on.get(timeout=TIMEOUT_S) for _ in range(100)]

    assert [group[0].token_ids for group in groups] == [(token,) for token in range(100)]
    assert len(appended) <= 3


def test_what_follows_a_lost_transaction_is_not_handed_on(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = case.accept("a"), case.accept("b")

    def full(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", full)
        case.writer.sink([update_of(one, 0, 4)])
        names, error = case.lost.get(timeout=TIMEOUT_S)
    assert names == ["a"] and isinstance(error, Unavailable)
    assert str(error) == "the journal cannot be written: database or disk is full"

    # The disk has room again, and the engine has not heard yet.
    case.writer.sink([update_of(one, 0, 5), update_of(other, 0, 4)])
    assert [update.request for update in case.handed_on.get(timeout=TIMEOUT_S)] == [other]
    assert case.known("a")[0] == Known()


def test_the_end_of_the_engine_is_not_that_of_its_requests(case: Case) -> None:
    request = case.accept("a")
    case.has_stopped = True
    case.writer.sink([Update(request, 0, finish_reason="error", error="the engine failed: a bug")])

    assert case.lost.get(timeout=TIMEOUT_S)[0] == ["a"]
    case.flush()
    assert [kept.name for kept in case.store.unfinished()] == ["a"]


@pytest.mark.parametrize("reason", ["error", "deadline"])
def test_an_end_before_its_time_is_one(case: Case, reason: str) -> None:
    request = case.accept("a")
    case.writer.sink([Update(request, 0, finish_reason=reason, error="steps kept failing")])
    case.flush()

    kept = read_kept(case.store.path, "me", "a")
    assert kept is not None and kept.ended is not None and kept.error is not None


def test_who_waits_cannot_take_back_what_is_being_written(case: Case) -> None:
    request = case.accept("a")
    # As the task of a call does whose client has gone.
    ended = case.writer.end("a", RequestCancelled("the request was aborted"))
    assert not ended.cancel()

    ended.result(TIMEOUT_S)
    case.accept("b")
    assert request.request_id == "a"


def test_a_cancel_that_nobody_asked_for_is_no_end(case: Case) -> None:
    """So that what a stopping server cancels is gone on with."""
    request = case.accept("a")
    case.writer.sink([Update(request, 0, finish_reason="cancelled")])
    case.flush()

    assert [kept.name for kept in case.store.unfinished()] == ["a"]
