"""Ways to ask the HTTP door: OpenAI's client, plain HTTP, and bytes on a socket."""

import http.client
import json
import socket
from typing import Any, NamedTuple

import openai

from tests.serve.running import TIMEOUT_S, Running


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        (error,) = self.json.values()
        assert set(error) == {"message", "type", "param", "code"}
        return error


def client_of(door: Running, key: str = "none", **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{door.server.http_port}/v1",
        api_key=key,
        max_retries=0,
        timeout=TIMEOUT_S,
        **settings,
    )


def ask(door: Running, path: str, body: Any = None, *, method: str = "", **headers: str) -> Answer:
    """Send one request; a body that is not bytes is written as JSON."""
    assert door.server.http_port is not None
    return ask_port(door.server.http_port, path, body, method=method, **headers)


def ask_port(port: int, path: str, body: Any = None, *, method: str = "", **headers: str) -> Answer:
    """The same, for a door without a server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        sent = {"content-type": "application/json"} | sent
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
        response = connection.getresponse()
        text = response.read().decode()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
    finally:
        connection.close()


def changed(body: dict[str, Any], **change: Any) -> dict[str, Any]:
    """A body with other values."""
    return body | change


def events_of(text: str) -> list[Any]:
    """Read server-sent events; the last may be `[DONE]`."""
    assert text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in text[:-2].split("\n\n")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def connected(door: Running) -> socket.socket:
    """A bare connection."""
    return socket.create_connection(("127.0.0.1", door.server.http_port), TIMEOUT_S)


def sent_of(path: str, body: Any, *headers: str) -> bytes:
    """A POST as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def get(connection: socket.socket, path: str) -> bytes:
    """Get JSON by a connection that is kept."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return read_json(connection)


def read_json(connection: socket.socket) -> bytes:
    """Read an answer of JSON from a connection that is kept."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    return answer


def read_all(connection: socket.socket) -> bytes:
    """Read to the end of a connection."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data
