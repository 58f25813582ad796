"""Broken, huge, slow and foreign requests are turned away, and the door stays open for others."""

import http.client
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from distkv_jax.errors import ConfigError
from serve.http.events import json_bytes
from serve.http.tls import tls_context
from serve.server import Server
from serve.settings import ServerSettings
from tests.serve.http.asking import ask, client_of, connected, read_all
from tests.serve.running import TIMEOUT_S, Loop, Running, running

COMPLETIONS = "/v1/completions"
MIB = 2**20


@pytest.fixture(scope="module")
def narrow(loop: Loop, shared_door: Running) -> Any:
    """A door for bodies up to one MiB."""
    with running(loop, shared_door.llm, http_port=0, max_message_mib=1) as service:
        yield service


def test_a_body_that_is_too_large_is_refused(narrow: Running) -> None:
    answer = ask(narrow, COMPLETIONS, b" " * (MIB + 1))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.error["message"] == f"the body has {MIB + 1} bytes, limit {MIB}"
    assert answer.headers["connection"] == "close"

    assert ask(narrow, COMPLETIONS, b'{"prompt": "x"}' + b" " * (MIB - 15)).status == 200
    with client_of(narrow) as client, pytest.raises(openai.APIStatusError) as raised:
        client.completions.create(model="small", prompt="x" * (MIB + 1))
    assert raised.value.status_code == 413


def test_a_body_far_too_large_is_refused_unread(narrow: Running) -> None:
    with connected(narrow) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 1000000000000\r\n\r\n"
        )
        assert b"limit 1048576" in read_all(connection)


@pytest.mark.parametrize(
    ("num_chunks", "end"), [(17, b"0\r\n\r\n"), (64, b"1\r\n \r\n")], ids=["ends", "goes on"]
)
def test_a_body_without_a_length_is_counted_as_it_comes(
    narrow: Running, num_chunks: int, end: bytes
) -> None:
    with connected(narrow) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(num_chunks):
            connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        connection.sendall(end)
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "GET"])
def test_another_method_is_405(door: Running, method: str) -> None:
    answer = ask(door, COMPLETIONS, method=method)

    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["message"] == f"/v1/completions has no method {method}, it has POST"


def test_head_is_get_without_the_body(door: Running) -> None:
    answer = ask(door, "/health", method="HEAD")

    assert (answer.status, answer.text) == (200, "")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
def test_a_page_that_calls_itself_this_machine_is_refused(door: Running, host: str) -> None:
    for path, body in (("/health", None), (COMPLETIONS, {"prompt": "x"})):
        answer = ask(door, path, body, host=host)

        assert (answer.status, answer.error["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:9", "[::1]:80"]
)
def test_this_machine_has_several_names(door: Running, host: str) -> None:
    assert ask(door, "/health", host=host).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_any_page_may_send_is_refused(
    door: Running, body: dict[str, Any], kind: str
) -> None:
    answer = ask(door, COMPLETIONS, body, content_type=kind, origin="http://evil.example")

    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert (
        ask(door, COMPLETIONS, body, content_type="Application/JSON; charset=utf-8").status == 200
    )


def test_no_origin_is_let_in(door: Running, body: dict[str, Any]) -> None:
    answer = ask(door, COMPLETIONS, body, origin="http://evil.example")

    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert ask(door, COMPLETIONS, method="OPTIONS", origin="http://evil.example").status == 405


def test_the_document_describes_what_there_is(door: Running) -> None:
    document = ask(door, "/openapi.json").json

    assert set(document["paths"]) == {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/health",
        "/version",
        "/openapi.json",
    }
    assert "prompt" in document["components"]["schemas"]["CompletionBody"]["required"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine, one of a client, and two keys."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        files = f"-keyout {name}.key -out {name}.pem -addext subjectAltName=DNS:localhost"
        subprocess.run(
            [*command.split(), *files.split()], cwd=folder, check=True, capture_output=True
        )
    return folder


def tls_settings(folder: Path, *, has_client: bool) -> dict[str, str]:
    settings = {"tls_cert": str(folder / "server.pem"), "tls_key": str(folder / "server.key")}
    return settings | ({"tls_client_ca": str(folder / "client.pem")} if has_client else {})


def status_over(door: Running, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection(
        "localhost", door.server.http_port or 0, context=context, timeout=TIMEOUT_S
    )
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("has_client", [False, True], ids=["TLS", "mTLS"])
def test_the_port_speaks_tls_as_grpc_does(
    loop: Loop, shared_door: Running, certificates: Path, has_client: bool
) -> None:
    settings = tls_settings(certificates, has_client=has_client)
    with running(loop, shared_door.llm, http_port=0, **settings) as door:
        context = ssl.create_default_context(cafile=certificates / "server.pem")
        if has_client:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                status_over(door, context)
            context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert status_over(door, context) == 200
        with connected(door) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200" not in read_all(connection)


def test_certificates_are_checked_before_loading(certificates: Path) -> None:
    settings = ServerSettings(
        tls_cert=str(certificates / "server.pem"), tls_key=str(certificates / "client.key")
    )
    with pytest.raises(ConfigError, match="are no PEM certificate, key and authority: "):
        tls_context(settings)


def test_a_port_in_use_is_told_and_nothing_is_left_listening(loop: Loop, door: Running) -> None:
    async def start(**ports: Any) -> None:
        await Server(door.llm, ServerSettings(**ports), model_name="x").start()

    taken = door.server.http_port
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken} for HTTP: "):
        loop.run(start(port=0, http_port=taken))
    # The other way round the port of HTTP is free again.
    with running(loop, door.llm, http_port=0) as other:
        free = other.server.http_port
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{door.server.port}: "):
        loop.run(start(port=door.server.port, http_port=free))
    with running(loop, door.llm, http_port=free) as again:
        assert ask(again, "/health").status == 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"http_port": 70000}, "http_port=70000 must be within 0..65535 or None"),
        ({"http_port": 50051}, "http_port=50051 and port=50051 must differ"),
    ],
)
def test_wrong_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ServerSettings(**given)


def test_an_answer_without_an_end_has_no_head(door: Running) -> None:
    answer = ask(door, "/live", method="HEAD")

    assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_half_a_surrogate_is_written_as_a_question_mark() -> None:
    assert json_bytes({"text": "a\ud83d\u00e4"}) == '{"text":"a?\u00e4"}'.encode()
