"""A durable request goes on without its reader, and is read from any token while it is kept."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from distkv_jax.errors import (
    DeadlineExceeded,
    DuplicateRequest,
    RequestCancelled,
    RequestNotFound,
    Unavailable,
)
from distkv_jax.llm import LLM
from serve.client import Client
from serve.journal.history import history_of
from serve.journal.store import Store, read_kept
from serve.proto.distkv.v1 import inference_pb2 as pb
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    in_background,
    paused,
    request_of,
    running,
    wait_until,
)

LONG: dict[str, Any] = {"seed": 4, "max_tokens": 200, "ignore_eos": True}
SHORT: dict[str, Any] = {"seed": 4, "max_tokens": 12, "ignore_eos": True}
Code = grpc.StatusCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def kept(loop: Loop, llm: LLM, folder: Path) -> Iterator[Running]:
    """A server with a journal of its own; its engine is empty afterwards."""
    with running(loop, llm, journal=str(folder)) as service:
        yield service
    wait_until(lambda: not llm.pool().placement, "its blocks are free")


def wait_ended(service: Running) -> None:
    wait_until(lambda: not service.server.dispatcher.quota.num_requests, "requests end")


def test_it_goes_on_without_its_reader_and_is_read_again_from_any_token(kept: Running) -> None:
    whole = kept.client.generate([5, 6], LONG | {"n": 2, "logprobs": 1})
    stream = kept.client.stream(
        [5, 6], LONG | {"n": 2, "logprobs": 1}, request_id="a", durable=True
    )
    next(stream)
    stream.close()
    # While it runs: some of it is history, the rest comes.
    with paused(kept.llm):
        middle = kept.client.attach("a", [1, 0])
        first = next(middle)
        assert 0 < len(first.outputs[1].token_ids) < 200
    (*_, last) = middle
    assert last.outputs[0].token_ids == whole.outputs[0].token_ids[1:]
    assert last.outputs[1].token_ids == whole.outputs[1].token_ids
    wait_ended(kept)

    for offset in (0, 1, 77, 199, 200):
        *_, last = kept.client.attach("a", [offset, 200 - offset])
        for sample, other, at in zip(
            last.outputs, whole.outputs, (offset, 200 - offset), strict=True
        ):
            assert sample.token_ids == other.token_ids[at:]
            # A letter is a token here.
            assert other.text.endswith(sample.text) and sample.finish_reason == "length"
            assert (sample.logprobs or []) == (other.logprobs or [])[at:]
    assert last.prompt_token_ids == [5, 6]


def test_a_history_longer_than_a_piece_comes_whole(
    kept: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept.client.generate([5, 6], LONG, request_id="a", durable=True)
    monkeypatch.setattr("serve.stream.HISTORY_PIECE", 7)

    pieces = list(kept.client.attach("a"))
    assert len(pieces) == -(-200 // 7)
    assert pieces[-1].outputs[0].token_ids == whole.outputs[0].token_ids
    assert pieces[-1].outputs[0].text == whole.outputs[0].text


def test_offsets_beyond_what_there_is_are_refused_with_what_is_allowed(kept: Running) -> None:
    kept.client.generate([5, 6], SHORT, request_id="a", durable=True)

    refused = failure_of(kept.inference.Attach, pb.AttachRequest(request_id="a", offsets=[13]))
    assert refused.code is Code.INVALID_ARGUMENT
    assert refused.text == "offset=13 of sample 0 must be within 0..12, the tokens it has"
    refused = failure_of(kept.inference.Attach, pb.AttachRequest(request_id="a", offsets=[0, 0]))
    assert refused.text == "offsets has 2 entries, limit 1"


def test_a_name_is_taken_while_the_request_runs_and_while_it_is_kept(kept: Running) -> None:
    stream = kept.client.stream([5, 6], SHORT, request_id="a", durable=True)
    text = "request_id 'a' is of a durable request of yours: attach to it"
    with paused(kept.llm):
        calls = in_background(list, stream)
        wait_until(lambda: kept.server.dispatcher.quota.num_requests, "it comes")
        for durable in (True, False):
            with pytest.raises(DuplicateRequest, match=text):
                kept.client.generate([5], SHORT, request_id="a", durable=durable)
    calls.result(30)
    wait_ended(kept)

    refused = failure_of(
        kept.inference.Generate, pb.GenerateRequest(request_id="a", text="x", durable=True)
    )
    assert (refused.code, refused.text) == (Code.ALREADY_EXISTS, text)


def test_without_a_journal_it_is_refused(service: Running) -> None:
    refused = failure_of(service.inference.Generate, pb.GenerateRequest(text="x", durable=True))

    assert refused.code is Code.FAILED_PRECONDITION
    assert refused.text == "durable=true needs a journal: start the server with --journal DIR"
    with pytest.raises(RequestNotFound, match="there is no journal"):
        next(service.client.attach("a"))


def test_an_abort_is_for_ever(kept: Running, loop: Loop, folder: Path) -> None:
    stream = kept.client.stream([5], LONG, request_id="a", durable=True)
    next(stream)
    kept.client.abort("a")

    with pytest.raises(RequestCancelled, match="the request was aborted"):
        list(stream)
    wait_ended(kept)
    with pytest.raises(RequestCancelled, match="the request was aborted"):
        next(kept.client.attach("a"))
    row = read_kept(folder / "journal.sqlite3", "", "a")
    assert row is not None and row.ended is not None


def test_a_deadline_ends_it_and_is_told_to_who_attaches(kept: Running) -> None:
    stream = kept.client.stream([5], LONG, request_id="a", durable=True, timeout_s=1)
    next(stream)
    with paused(kept.llm):
        with pytest.raises(DeadlineExceeded):
            list(stream)
    wait_ended(kept)

    with pytest.raises(DeadlineExceeded, match="the deadline passed before the request ended"):
        next(kept.client.attach("a"))


def test_others_do_not_find_it(loop: Loop, llm: LLM, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice alice-has-a-long-key\nbob bob-has-a-longer-key-still\n")
    keys.chmod(0o600)
    with running(loop, llm, journal=str(folder), api_key_file=str(keys)) as service:
        alice = Client(service.address, api_key="alice-has-a-long-key", max_retries=0)
        bob = Client(service.address, api_key="bob-has-a-longer-key-still", max_retries=0)
        with alice, bob:
            whole = alice.generate([5], SHORT, request_id="a", durable=True)
            with pytest.raises(RequestNotFound, match="'a' is of no durable request of yours"):
                next(bob.attach("a"))
            assert bob.generate([5], SHORT, request_id="a", durable=True).finished
            *_, last = alice.attach("a")
            assert last.outputs[0].token_ids == whole.outputs[0].token_ids


def test_a_drain_leaves_it_to_the_next_start_with_nothing_lost(
    loop: Loop, llm: LLM, folder: Path
) -> None:
    with running(loop, llm, journal=str(folder)) as service:
        whole = service.client.generate([5, 6], LONG | {"n": 2})
        stream = service.client.stream([5, 6], LONG | {"n": 2}, request_id="a", durable=True)
        before = next(stream)
        with paused(llm):
            service.client.drain(0.01)
            with pytest.raises(Unavailable, match=r"the server was stopped: .* attach to it"):
                in_background(list, stream).result(30)
            # Nothing that was accepted is lost.
            assert service.wait()

    with running(loop, llm, journal=str(folder)) as service:
        *_, last = service.client.attach("a")
        assert [one.token_ids for one in last.outputs] == [one.token_ids for one in whole.outputs]
        assert [one.text for one in last.outputs] == [one.text for one in whole.outputs]
        seen = before.outputs[0].token_ids
        assert last.outputs[0].token_ids[: len(seen)] == seen
        wait_ended(service)
        usage = service.inference.Attach(pb.AttachRequest(request_id="a"))
        assert list(usage)[-1].usage.completion_tokens == 400


def test_a_full_disk_refuses_new_ones_and_ends_streams_and_the_next_start_goes_on(
    loop: Loop, llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(loop, llm, journal=str(folder)) as service:
        whole = service.client.generate([5, 6], LONG)
        stream = service.client.stream([5, 6], LONG, request_id="a", durable=True)
        seen = [next(stream)]

        def full(*arguments: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "append", full)
            text = "the journal cannot be written: database or disk is full: the request is durable"
            with pytest.raises(Unavailable, match=text):
                seen.extend(stream)
            # What it has is what is on disk, or less.
            row = read_kept(folder / "journal.sqlite3", "", "a")
            assert row is not None
            on_disk = history_of(row, folder).known[0].token_ids
            had = seen[-1].outputs[0].token_ids
            assert had == list(on_disk[: len(had)])
            patch.setattr(Store, "accept", full)
            refused = failure_of(
                service.inference.Generate, pb.GenerateRequest(text="x", durable=True)
            )
            assert refused.code is Code.UNAVAILABLE
            assert refused.text == "the journal cannot be written: database or disk is full"
        wait_ended(service)
        # With room again new ones are taken; the old one waits for a start.
        assert service.client.generate([5], SHORT, request_id="b", durable=True).finished
        with pytest.raises(Unavailable, match="'a' does not run now"):
            next(service.client.attach("a"))

    with running(loop, llm, journal=str(folder)) as service:
        *_, last = service.client.attach("a")
        assert last.outputs[0].token_ids == whole.outputs[0].token_ids


def test_requests_are_durable_by_default_where_the_server_says_so(
    loop: Loop, llm: LLM, folder: Path
) -> None:
    with running(loop, llm, journal=str(folder), durable_by_default=True) as service:
        service.client.generate([5], SHORT, request_id="a")
        service.client.generate([5], SHORT, request_id="b", durable=False)

        assert list(service.client.attach("a"))[-1].finished
        with pytest.raises(RequestNotFound):
            next(service.client.attach("b"))


def test_acceptance_is_told_before_the_first_token(kept: Running) -> None:
    with paused(kept.llm):
        message = request_of(5, request_id="a", max_tokens=2)
        message.durable = True
        call = kept.inference.GenerateStream(message)
        # Submitting is not answered while the engine pauses; being written is.
        wait_until(lambda: kept.server.settings.journal and _is_kept(kept, "a"), "it is written")
    assert dict(call.initial_metadata())["distkv-accepted"] == "a"
    assert list(call)[-1].usage.completion_tokens == 2


def _is_kept(service: Running, name: str) -> bool:
    assert service.server.settings.journal is not None
    return (
        read_kept(Path(service.server.settings.journal) / "journal.sqlite3", "", name) is not None
    )
