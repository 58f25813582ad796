"""A connection that is slow, broken or one too many is answered or ended, and others go on."""

import contextlib
import http.client
import json
import socket
from typing import Any

import pytest

import serve.http.body
import serve.http.door
import serve.http.protocol
from tests.serve.http.asking import ask, connected, get, read_all, read_json, sent_of
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    in_background,
    paused,
    running,
    wait_submitted,
    wait_until,
)

COMPLETIONS = "/v1/completions"


def test_a_slow_body_is_given_up(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.http.body, "PIECE_S", 0.05)
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, {"prompt": "x"})[:-3])
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"12 bytes of the body came in the time for them" in answer


def test_a_body_that_stops_is_given_up_however_much_has_come(
    door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.body, "PIECE_S", 0.05)
    monkeypatch.setattr(serve.http.body, "BYTES_PER_S", 1)
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, {"prompt": "x" * 50_000})[:-3])
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips_is_given_up(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.http.body, "PIECE_S", 0.2)
    monkeypatch.setattr(serve.http.body, "BYTES_PER_S", 2**40)
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, b"x" * 100_000)[:-99_000])
        connection.settimeout(0.01)
        wait_until(lambda: has_answer_to(connection, b"x"), "it is given up")


def has_answer_to(connection: socket.socket, sent: bytes) -> bool:
    """Send something more and see whether an answer, or an end, has come."""
    try:
        connection.sendall(sent)
        connection.recv(65536)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_what_is_left_of_a_refused_body_does_not_keep_the_connection(
    door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.protocol, "REST_S", 0.05)
    with connected(door) as connection:
        connection.sendall(sent_of("/nowhere", b"x" * 100_000)[:-99_000])
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.settimeout(0.01)
        wait_until(lambda: has_answer_to(connection, b"x"), "it is cut off")


def test_a_refused_body_that_comes_keeps_the_connection(door: Running) -> None:
    sent = sent_of("/nowhere", b"x" * 1000)
    with connected(door) as connection:
        for _ in range(2):
            connection.sendall(sent[:-500])
            assert read_json(connection).startswith(b"HTTP/1.1 404 ")
            connection.sendall(sent[-500:])


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhos"], ids=["none", "half"])
def test_headers_that_do_not_come_are_given_up(
    door: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(serve.http.protocol, "HEAD_S", 0.05)
    with connected(door) as connection:
        connection.sendall(sent)
        with pytest.raises(ConnectionResetError):
            assert read_all(connection) == b""
            raise ConnectionResetError


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["TLS", "HTTP/0.9", "length"],
)
def test_what_is_not_http_is_400(door: Running, sent: bytes) -> None:
    with connected(door) as connection:
        connection.sendall(sent)
        head, _, text = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(text) == {
        "error": {
            "message": "the request is not valid HTTP/1.1, or its headers are too large",
            "type": "invalid_request_error",
            "param": None,
            "code": "bad_request",
        }
    }
    assert ask(door, "/health").status == 200


def test_nonsense_behind_an_answer_ends_the_connection(
    door: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(door) as connection:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"nonsense\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in read_all(connection)
    assert ask(door, "/health").status == 200
    assert caplog.records == []


def test_too_many_connections_are_turned_away(
    loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.door, "OTHER_CONNECTIONS", 0)
    with running(loop, shared_door.llm, http_port=0, max_num_requests=1) as door:
        with paused(door.llm):
            waits = in_background(ask, door, COMPLETIONS, {"prompt": "hello"})
            wait_submitted(door, 1)
            answer = ask(door, "/v1/models")
            health = ask(door, "/health")
        assert waits.result(TIMEOUT_S).status == 200
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert answer.error["message"] == "2 connections, limit 1"
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
        assert health.status == 200
        wait_until(lambda: ask(door, "/v1/models").status == 200, "there is room again")


def test_connections_without_a_request_make_room(
    loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.door, "OTHER_CONNECTIONS", 1)
    with running(loop, shared_door.llm, http_port=0, max_num_requests=1) as door:
        with connected(door) as oldest, connected(door) as younger:
            for idle in (younger, oldest, younger):
                assert get(idle, "/health").startswith(b"HTTP/1.1 200 ")
            assert ask(door, "/v1/models").status == 200
            assert read_all(oldest) == b""
            assert get(younger, "/version").startswith(b"HTTP/1.1 200 ")


def test_headers_without_an_end_are_refused(door: Running) -> None:
    with connected(door) as connection, contextlib.suppress(ConnectionError):
        for _ in range(20):
            connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 2**18)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert ask(door, "/health").status == 200


def test_a_websocket_is_not_opened(door: Running) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_key": "x" * 22 + "==",
    }
    assert ask(door, "/health", **upgrade).status == 200


def test_a_connection_is_kept(door: Running, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", door.server.http_port, timeout=TIMEOUT_S)
    for path in ("/health", "/nowhere", "/v1/models", "/health"):
        connection.request("GET", path)
        assert connection.getresponse().read()
        first = connection.sock
        assert first is not None
    connection.close()
