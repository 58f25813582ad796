"""What was accepted is not over before its client has it, and who takes nothing is cut off."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

import serve.http.door
import serve.http.events
import serve.http.protocol
import serve.server
import serve.stream
from serve.http.door import bound
from tests.serve.http.asking import read_all, sent_of
from tests.serve.running import Loop, Running, running, wait_until

COMPLETIONS = "/v1/completions"
LARGE: dict[str, Any] = {
    "prompt": "hello",
    "n": 8,
    "max_tokens": 30,
    "logprobs": 20,
    "ignore_eos": True,
}
"""An answer of some 150 KB."""


@pytest.fixture
def narrow(loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose connections' buffers are small, and whose end is quick."""

    def narrow(*address: Any, **settings: Any) -> socket.socket:
        listener = bound(*address, **settings)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr(serve.http.door, "bound", narrow)
    monkeypatch.setattr(serve.server, "LAST_WORDS_S", 0.05)
    with running(loop, shared_door.llm, http_port=0) as door:
        yield door


def narrowly_connected(door: Running) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", door.server.http_port))
    return connection


def held(door: Running) -> int:
    return sum(48 - one.free for one in door.llm.pool().usage)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_drain_waits_until_an_answer_is_taken(narrow: Running, is_stream: bool) -> None:
    with narrowly_connected(narrow) as connection:
        connection.sendall(sent_of(COMPLETIONS, LARGE | {"stream": is_stream}))
        answer = connection.recv(100)
        wait_until(lambda: not held(narrow), "the engine is done with it")
        narrow.client.drain()
        assert narrow.server.dispatcher.quota.num_requests == 1
        answer += read_all(connection)
        assert narrow.wait()

    head, _, text = answer.partition(b"\r\n\r\n")
    assert len(text) > 100_000
    if is_stream:
        assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    else:
        assert f"content-length: {len(text)}".encode() in head


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_an_answer_that_is_not_taken_gives_its_quota_back(
    narrow: Running, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.stream, "LAST_READ_S", 0.1)
    monkeypatch.setattr(serve.http.events, "LAST_WORDS_S", 0.05)
    with narrowly_connected(narrow) as connection:
        connection.sendall(sent_of(COMPLETIONS, LARGE | {"stream": is_stream}))
        connection.recv(100)
        wait_until(lambda: not narrow.server.dispatcher.quota.num_requests, "it is given up")
        wait_until(lambda: not num_connections(narrow), "it is cut off")


@pytest.mark.parametrize("header", ["", "connection: close\r\n"], ids=["kept", "close"])
def test_a_client_that_takes_nothing_loses_its_connection(
    narrow: Running, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.setattr(serve.http.protocol, "STALL_S", 0.05)
    with narrowly_connected(narrow) as connection:
        ask = f"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n{header}\r\n"
        connection.sendall(ask.encode())
        wait_until(lambda: not num_connections(narrow), "it is cut off")


def num_connections(door: Running) -> int:
    """Those the server has: a client that reads nothing does not see its own cut off."""
    assert door.server._door is not None
    return len(door.server._door._state.connections)
