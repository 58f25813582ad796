"""Bodies that come in have a place in the quota and little room: nobody fills the memory."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

import serve.http.intake
from distkv_jax.errors import QueueFull, QuotaExceeded
from serve.http.body import read_body
from serve.keys import Caller
from serve.quota import Quota
from tests.serve.http.asking import ask, connected, read_all, sent_of
from tests.serve.running import Loop, Running, running, wait_until

COMPLETIONS = "/v1/completions"
ALICE, ADMIN = (f"{name}-0123456789abcdef" for name in ("alice", "admin"))
A, B = Caller("a", is_admin=False), Caller("b", is_admin=False)
LONG = {"prompt": "x" * 700_000}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of pieces of bodies that were taken in."""
    told: list[int] = []

    async def watched(request: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
        def held(num_bytes: int) -> None:
            hold(num_bytes)
            told.append(num_bytes)

        return await read_body(request, max_bytes, held)

    monkeypatch.setattr(serve.http.intake, "read_body", watched)
    return told


@contextlib.contextmanager
def half_sent(door: Running, body: Any, *headers: str) -> Iterator[socket.socket]:
    """A call of whose body the last bytes are missing."""
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, body, *headers)[:-5])
        yield connection


def test_a_call_that_is_read_has_a_place() -> None:
    quota = Quota(max_requests=3, caller_requests=2, caller_tokens=None)
    with quota.reading(A):
        quota.begin(A)
        with pytest.raises(QuotaExceeded, match="2 requests of yours under way, limit 2"):
            with quota.reading(A):
                pass
        # What is read holds up nobody whose request is here.
        quota.begin(A)
        with pytest.raises(QueueFull, match="3 requests under way, limit 3"):
            with quota.reading(B):
                pass
        quota.end(A)
        quota.end(A)
        with quota.reading(A), quota.reading(B):
            assert quota.num_requests == 0
    with quota.reading(A), quota.reading(A):
        pass


def test_a_body_that_does_not_come_takes_its_callers_place(
    loop: Loop, shared_door: Running, body: dict[str, Any]
) -> None:
    with running(loop, shared_door.llm, http_port=0, quota_requests=1) as door:
        with half_sent(door, body, "connection: close") as connection:
            wait_until(lambda: ask(door, COMPLETIONS, body).status == 429, "the place is taken")
            connection.sendall(b" " * 5)
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        assert ask(door, COMPLETIONS, body).status == 200


def test_bodies_have_little_room_together(
    loop: Loop, shared_door: Running, held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.intake, "LARGEST_AT_ONCE", 1)
    with running(loop, shared_door.llm, http_port=0, max_message_mib=1) as door:
        with half_sent(door, LONG):
            wait_until(lambda: sum(held) > 700_000, "it is held")
            answer = ask(door, COMPLETIONS, LONG)
            assert answer.status == 429
            assert answer.error["message"].endswith("bytes of bodies are being read, limit 1048576")
            assert ask(door, COMPLETIONS, {"prompt": "hello"}).status == 200
        wait_until(lambda: ask(door, COMPLETIONS, LONG).status == 400, "there is room again")


def test_no_caller_has_all_the_room(
    loop: Loop,
    shared_door: Running,
    held: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {ALICE}\nops {ADMIN} admin\n")
    monkeypatch.setattr(serve.http.intake, "LARGEST_OF_ONE", 1)
    settings: dict[str, Any] = {"max_message_mib": 1, "api_key_file": str(file)}
    with running(loop, shared_door.llm, http_port=0, **settings) as door:
        with half_sent(door, LONG, f"authorization: Bearer {ALICE}"):
            wait_until(lambda: sum(held) > 700_000, "it is held")
            answer = ask(door, COMPLETIONS, LONG, authorization=f"Bearer {ALICE}")
            assert answer.status == 429
            assert "bytes of bodies of yours are being read, limit 1048576" in answer.text
            other = ask(door, COMPLETIONS, LONG, authorization=f"Bearer {ADMIN}")
            assert other.status == 400
