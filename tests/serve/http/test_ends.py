"""However a request ends, its blocks are free at once, and half an answer never looks whole."""

import contextlib
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

import serve.http.door
import serve.http.events
import serve.server
from distkv_jax.engine.request import Request
from serve.http.door import bound
from serve.settings import ServerSettings
from tests.serve.cancels import Cancels, watched_cancels
from tests.serve.http.asking import ask, client_of, connected, events_of, read_all, sent_of
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
ENDLESS: dict[str, Any] = {
    "prompt": [5] * 20,
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 0,
}


@pytest.fixture
def cancels(door: Running) -> Iterator[Cancels]:
    with watched_cancels(door.llm) as seen:
        yield seen


def held(door: Running) -> int:
    return sum(48 - one.free for one in door.llm.pool().usage)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("prompt", [[5] * 20, [[5] * 20, [6] * 20]], ids=["one", "two"])
def test_a_client_that_leaves_frees_its_blocks_within_two_steps(
    door: Running,
    cancels: Cancels,
    caplog: pytest.LogCaptureFixture,
    is_stream: bool,
    prompt: Any,
) -> None:
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, ENDLESS | {"stream": is_stream, "prompt": prompt}))
        wait_until(lambda: held(door) > 0, "blocks are taken")
    wait_until(lambda: not door.server.dispatcher.quota.num_requests, "the request ends")

    assert len(cancels.after) == (2 if isinstance(prompt[0], list) else 1)
    cancels.check()
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_client_that_asks_again_and_leaves_frees_its_blocks(
    door: Running, cancels: Cancels
) -> None:
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, ENDLESS))
        wait_until(lambda: held(door) > 0, "blocks are taken")
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    wait_until(lambda: cancels.after, "the engine hears of it")
    cancels.check()


def test_requests_sent_at_once_are_answered_one_by_one(door: Running) -> None:
    with connected(door) as connection:
        first = sent_of(COMPLETIONS, {"prompt": "hello", "max_tokens": 2})
        connection.sendall(first + sent_of("/nowhere", {}, "connection: close"))
        answers = read_all(connection)

    assert answers.index(b"HTTP/1.1 200 ") < answers.index(b"HTTP/1.1 404 ")


def test_a_client_that_leaves_while_it_sends_leaves_nothing(door: Running) -> None:
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, ENDLESS)[:-5])
    assert ask(door, "/health").status == 200


def test_an_abort_ends_a_stream_without_done(door: Running) -> None:
    body = ENDLESS | {"stream": True}
    with connected(door) as connection:
        connection.sendall(sent_of(COMPLETIONS, body, "x-request-id: letter", "connection: close"))
        begin = connection.recv(65536)
        door.client.abort("letter")
        answer = (begin + read_all(connection)).decode()

    assert answer.startswith("HTTP/1.1 200 ")
    assert "[DONE]" not in answer
    last = json.loads(answer[answer.rindex("data: ") + 6 :].split("\n")[0])
    assert last == {
        "error": {
            "message": "the request was aborted",
            "type": "cancelled_error",
            "param": None,
            "code": "request_cancelled",
        }
    }


def test_openais_client_raises_what_ends_a_stream(client: openai.OpenAI, door: Running) -> None:
    stream = client.completions.create(
        model="small",
        prompt="hello",
        max_tokens=200,
        stream=True,
        extra_body={"ignore_eos": True, "request_id": "letter"},
    )
    next(stream)
    door.client.abort("letter")

    with pytest.raises(openai.APIError, match="the request was aborted"):
        list(stream)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_time_that_is_over_in_the_queue_is_504(door: Running, is_stream: bool) -> None:
    with paused(door.llm):
        answer = ask(door, COMPLETIONS, ENDLESS | {"stream": is_stream}, x_request_timeout="0.05")

    assert (answer.status, answer.error["type"]) == (504, "timeout_error")
    assert answer.error["message"] == "the deadline passed before the request ended"


def test_what_fails_before_its_first_token_has_a_status(door: Running) -> None:
    with paused(door.llm):
        named = ENDLESS | {"stream": True, "request_id": "letter"}
        waits = in_background(ask, door, COMPLETIONS, named)
        wait_submitted(door, 1)
        door.client.abort("letter")
        answer = waits.result(TIMEOUT_S)

    assert (answer.status, answer.error["code"]) == (499, "request_cancelled")


def test_a_reader_that_does_not_read_is_cut_off(
    loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.events, "LAST_WORDS_S", 0.0)

    def narrow(*address: Any, **settings: Any) -> socket.socket:
        listener = bound(*address, **settings)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    # The buffers between the two are small, and the pieces large.
    monkeypatch.setattr(serve.http.door, "bound", narrow)
    body = ENDLESS | {"stream": True, "n": 4, "logprobs": 20, "prompt_logprobs": 20, "echo": True}
    with (
        running(loop, shared_door.llm, http_port=0, max_unread_tokens=8) as door,
        watched_cancels(door.llm) as cancels,
    ):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", door.server.http_port))
        with connection:
            connection.sendall(sent_of(COMPLETIONS, body | {"prompt": [5] * 50}))
            wait_until(lambda: cancels.after, "it is cut off")
            wait_until(lambda: not door.server.dispatcher.quota.num_requests, "it is over")
            cancels.check()
            data = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    data += piece

    # Cut off in the middle: neither an end nor a piece that says why, for which there was no room.
    assert data.startswith(b"HTTP/1.1 200 ")
    assert not data.endswith(b"\r\n0\r\n\r\n")


def test_too_much_at_once_is_429_and_says_when_to_come_again(
    loop: Loop, shared_door: Running, body: dict[str, Any]
) -> None:
    with running(loop, shared_door.llm, http_port=0, max_num_requests=1) as door:
        with paused(door.llm):
            waits = in_background(ask, door, COMPLETIONS, body)
            wait_submitted(door, 1)
            with client_of(door) as client, pytest.raises(openai.RateLimitError) as raised:
                client.completions.create(**body)
        assert waits.result(TIMEOUT_S).status == 200

    assert raised.value.response.headers["retry-after"] == "1"
    assert "1 requests under way, limit 1" in str(raised.value)


def test_a_drain_finishes_what_was_accepted_and_turns_the_rest_away(
    loop: Loop, shared_door: Running, body: dict[str, Any]
) -> None:
    with running(loop, shared_door.llm, http_port=0) as door:
        with paused(door.llm):
            streams = [
                in_background(ask, door, COMPLETIONS, body | {"stream": is_stream})
                for is_stream in (True, False, True)
            ]
            wait_submitted(door, 3)
            door.client.drain()
            health = ask(door, "/health")
            refused = ask(door, COMPLETIONS, body)
            listed = ask(door, "/v1/models")
        answers = [one.result(TIMEOUT_S) for one in streams]
        assert door.wait()

    assert (health.status, health.json) == (503, {"status": "draining"})
    assert (refused.status, refused.error["type"]) == (503, "service_unavailable_error")
    assert refused.error["message"] == "the server is being stopped, it takes no more requests"
    for answer in (health, refused):
        assert answer.headers["retry-after"] == "1"
    for answer in (health, refused, listed):
        assert answer.headers["connection"] == "close"
    assert [answer.status for answer in answers] == [200] * 3
    assert events_of(answers[0].text)[-1] == "[DONE]"
    assert answers[1].json["choices"][0]["finish_reason"] == "length"


def test_health_follows_an_engine_that_hangs_and_comes_back(
    loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.server, "WATCH_S", 0.02)
    with running(loop, shared_door.llm, http_port=0, step_timeout_s=0.3) as door:
        assert ask(door, "/health").status == 200
        with paused(door.llm):
            wait_until(lambda: ask(door, "/health").status == 503, "health says so")
            assert ask(door, "/health").json == {"status": "the engine does not answer"}
        wait_until(lambda: ask(door, "/health").status == 200, "health says that it came back")


def test_what_is_cut_off_is_told(loop: Loop, shared_door: Running) -> None:
    with running(loop, shared_door.llm, http_port=0) as door:
        with client_of(door) as client:
            stream = client.completions.create(
                model="small", prompt="hello", max_tokens=240, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            next(stream)
            waits = in_background(list, stream)
            with paused(door.llm):
                door.on_loop(door.server.stop_now)
                with pytest.raises(openai.APIError, match="the server was stopped"):
                    waits.result(TIMEOUT_S)


def test_idle_connections_do_not_hold_the_end_up(loop: Loop, shared_door: Running) -> None:
    with running(loop, shared_door.llm, http_port=0) as door:
        with connected(door) as silent, connected(door) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += idle.recv(65536)
            door.on_loop(door.server.drain)
            assert door.wait()
            assert read_all(silent) == b""
            assert read_all(idle) == b""


@pytest.mark.parametrize("path", ["/live", "/metrics"])
def test_a_route_that_waits_for_a_hanging_engine_does_not_hold_the_end_up(
    loop: Loop, shared_door: Running, path: str
) -> None:
    with running(loop, shared_door.llm, http_port=0) as door, paused(door.llm):
        with connected(door) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            ask(door, "/health")
            door.on_loop(door.server.stop_now)
            door.wait()
            with contextlib.suppress(ConnectionResetError):
                read_all(connection)


def test_a_chat_has_its_time_while_it_is_templated(
    door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    monkeypatch.setattr(door.llm, "chat_tokens", lambda _: may_go.wait(TIMEOUT_S) and [5])
    body = {"messages": [{"role": "user", "content": "x" * 5000}]}
    answer = ask(door, "/v1/chat/completions", body, x_request_timeout="0.05")
    is_counted_out = not door.server.dispatcher.quota.num_requests
    may_go.set()

    assert (answer.status, answer.error["type"]) == (504, "timeout_error")
    assert is_counted_out


def test_several_prompts_are_handed_over_at_once(
    door: Running, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits for the step of another."""
    submit, sizes = door.llm.thread.submit_soon, list[int]()

    def submits(requests: Sequence[Request], sink: Any) -> Any:
        sizes.append(len(requests))
        return submit(requests, sink)

    monkeypatch.setattr(door.llm.thread, "submit_soon", submits)
    with paused(door.llm):
        waits = in_background(ask, door, COMPLETIONS, body | {"prompt": ["hello"] * 6})
        wait_submitted(door, 6)
    assert len(waits.result(TIMEOUT_S).json["choices"]) == 6
    assert sizes == [6]


def test_signals_are_left_to_the_server(door: Running) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.current_thread() is threading.main_thread()


def test_http_is_optional(loop: Loop, shared_door: Running) -> None:
    with running(loop, shared_door.llm, http_port=None) as door:
        assert door.server.http_port is None
    assert ServerSettings().http_port == 8000
