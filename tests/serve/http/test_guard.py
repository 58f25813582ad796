"""Every route says who may use it; without a key nobody learns even which routes there are."""

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import serve.http.door
from serve.http.access import Access, caller_of, guarded_route
from serve.http.door import HttpDoor
from serve.keys import load_keys
from serve.settings import ServerSettings
from tests.serve.http.asking import Answer, ask, ask_port, client_of
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    in_background,
    paused,
    running,
    wait_submitted,
)

ALICE, ADMIN = (f"{name}-0123456789abcdef" for name in ("alice", "admin"))
CLOSED = (
    ("GET", "/v1/models"),
    ("GET", "/v1/models/small"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("DELETE", "/v1/models"),
    ("GET", "/v1/completions"),
    ("GET", "//health"),
    ("GET", "/health/"),
)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text(f"alice {ALICE}\nops {ADMIN} admin\n")
    return str(file)


@pytest.fixture
def guarded(loop: Loop, shared_door: Running, key_file: str) -> Any:
    with running(loop, shared_door.llm, http_port=0, api_key_file=key_file) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_every_path_but_health_is_closed(guarded: Running, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong-0123456789abcdef"}):
        answer = ask(guarded, path, method=method, **headers)

        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key"
        assert answer.error["message"] == (
            "the API key is not known"
            if headers
            else "no API key, expected a header authorization: Bearer KEY"
        )


def test_health_is_open_and_with_keys_under_any_name(guarded: Running) -> None:
    assert ask(guarded, "/health", host="serving.example").status == 200
    answer = ask(guarded, "/v1/models", host="x.example", authorization=f"Bearer {ALICE}")
    assert answer.status == 200


def test_openais_client_brings_the_key(guarded: Running, body: dict[str, Any]) -> None:
    with client_of(guarded, ALICE) as client:
        assert client.completions.create(**body).choices[0].text
    with client_of(guarded, "no") as client, pytest.raises(openai.AuthenticationError):
        client.completions.create(**body)


def test_callers_have_names_of_their_own(guarded: Running, body: dict[str, Any]) -> None:
    with paused(guarded.llm):
        answers = [
            in_background(
                ask, guarded, "/v1/completions", body | {"request_id": "same"},
                authorization=f"Bearer {key}",
            )
            for key in (ALICE, ADMIN)
        ]  # fmt: skip
        wait_submitted(guarded, 2)
    assert [answer.result(TIMEOUT_S).status for answer in answers] == [200, 200]


def test_a_route_of_another_part_has_its_own_rule(
    loop: Loop, shared_door: Running, key_file: str
) -> None:
    async def tell(request: Request) -> Response:
        caller = caller_of(request)
        return JSONResponse([caller.name, caller.is_admin])

    routes = [
        guarded_route(f"/{access.name}", tell, methods=["GET", "POST"], access=access)
        for access in Access
    ]
    settings = ServerSettings(http_port=0, api_key_file=key_file)
    door = HttpDoor(shared_door.server.dispatcher, load_keys(key_file, None), settings, "x", routes)

    def get(path: str, key: str = "", **more: str) -> Answer:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return ask_port(door.port, path, **headers, **more)

    loop.run(door.start())
    try:
        assert get("/OPEN").json == ["", False]
        assert get("/CALLER").status == get("/ADMIN").status == 401
        assert get("/CALLER", ALICE).json == ["alice", False]
        assert get("/ADMIN", ADMIN).json == ["ops", True]
        refused = get("/ADMIN", ALICE)
        assert (refused.status, refused.error["type"]) == (403, "permission_error")
        assert refused.error["message"] == "the API key of alice is not an admin's"
        assert get("/ADMIN", ADMIN, method="POST").status == 415
    finally:
        loop.run(door.stop(1.0))


def test_a_route_that_does_not_end_does_not_hold_the_end_up(
    loop: Loop, shared_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.http.door, "TASKS_S", 0.05)
    has_begun = threading.Event()

    async def wait(request: Request) -> Response:
        del request
        has_begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    routes = [guarded_route("/wait", wait, methods=["GET"], access=Access.OPEN)]
    settings = ServerSettings(http_port=0)
    door = HttpDoor(shared_door.server.dispatcher, load_keys(None, None), settings, "x", routes)
    loop.run(door.start())
    with socket.create_connection(("127.0.0.1", door.port), TIMEOUT_S) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert has_begun.wait(TIMEOUT_S)
        loop.run(door.stop(0.0))
