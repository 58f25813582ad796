"""A client keeps its key to itself, and says what is wrong with files and large answers."""

import logging
import stat
from pathlib import Path
from typing import Any

import pytest

import serve.server
from distkv_jax.errors import ConfigError, RequestError
from serve.client import AsyncClient, Client, ClientSettings
from serve.keys import load_keys
from tests.serve.running import Loop, Running, running

KEY = "alice-0123456789abcdef"


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.8.0.1:1", "unix:/a/b", "dns:///[::1]:1"],
)
def test_a_key_is_sent_to_this_machine(server: str) -> None:
    assert ClientSettings(server=server, api_key=KEY).metadata()


@pytest.mark.parametrize(
    "server",
    [
        "gpu7:50051",
        "10.0.0.1:50051",
        "dns:///gpu7:1",
        "localhost.example.com:1",
        "gpu7",
        "evil.example/localhost:1",
        "dns://evil.example/localhost:1",
    ],
)
def test_a_key_is_sent_to_others_with_tls_only(server: str) -> None:
    with pytest.raises(ConfigError, match=f"server={server} is another machine: the API key"):
        ClientSettings(server=server, api_key=KEY).metadata()

    many: list[dict[str, Any]] = [{"tls": True}, {"tls_ca": "ca.pem"}, {"insecure": True}]
    for safe in many:
        assert ClientSettings(server=server, api_key=KEY, **safe).metadata()
    assert ClientSettings(server=server).metadata() == ()


def test_the_key_of_the_environment_is_kept_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTKV_API_KEY", KEY)
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="the API key would be sent in the clear"):
            kind("gpu7:50051")


@pytest.mark.parametrize(
    "text", [KEY, f"# mine\n\n  # another\n{KEY}\n", f"alice {KEY}", f"#x\nalice {KEY} admin\n"]
)
def test_the_first_line_that_is_no_comment_has_the_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)

    assert ClientSettings(api_key_file=str(file)).metadata() == (
        ("authorization", f"Bearer {KEY}"),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "a b c d"])
def test_a_file_without_a_key_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)

    with pytest.raises(ConfigError, match="key has no line KEY or NAME KEY"):
        ClientSettings(api_key_file=str(file)).metadata()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o600, 0o400])
def test_a_file_of_keys_that_others_can_read_is_warned_of(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {KEY}\n")
    file.chmod(mode)
    load_keys(str(file), None)
    ClientSettings(api_key_file=str(file)).metadata()

    warning = f"{file} has mode {mode:o}: others can read the keys in it, use 600"
    is_shared = bool(mode & (stat.S_IRGRP | stat.S_IROTH))
    assert caplog.messages == 2 * is_shared * [warning]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


LARGE: dict[str, Any] = {"max_tokens": 9, "ignore_eos": True, "logprobs": 20}


def test_an_answer_over_the_clients_limit_names_the_setting(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [("grpc.max_receive_message_length", 1000)]
    monkeypatch.setattr(ClientSettings, "options", lambda _: options)
    with Client(service.address) as client:
        with pytest.raises(RequestError, match="the answer is over the client's max_message_mib: "):
            client.generate([5], LARGE)


def test_an_answer_over_the_servers_limit_names_the_setting(
    loop: Loop, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [("grpc.max_send_message_length", 1000)]
    monkeypatch.setattr(serve.server, "options_of", lambda _: options)
    with running(loop, shared.llm) as service:
        for call in (service.client.generate, lambda *words: list(service.client.stream(*words))):
            with pytest.raises(RequestError, match="the answer is over the server's max_message"):
                call([5] * 30, LARGE | {"prompt_logprobs": 20})


def test_a_request_over_the_servers_limit_names_the_setting(loop: Loop, shared: Running) -> None:
    with (
        running(loop, shared.llm, max_message_mib=1) as service,
        Client(service.address, max_retries=0) as client,
    ):
        with pytest.raises(RequestError, match="the request is over the server's max_message_mib"):
            client.generate("x" * 2**21)
