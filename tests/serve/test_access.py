"""Nobody calls anything without being let in, and other machines cannot even connect by default."""

import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distkv_jax.errors import (
    ConfigError,
    NotAllowed,
    RequestNotFound,
    Unauthenticated,
    Unavailable,
)
from serve.client import Client
from serve.gate import OPEN_METHODS
from serve.keys import Caller, Keys, bearer, load_keys
from serve.server import Server
from serve.settings import ServerSettings, check_exposure
from tests.serve.running import Loop, Running, failure_of, running

ALICE, BOB, ADMIN = (f"{name}-0123456789abcdef" for name in ("alice", "bob", "admin"))
METHODS = [
    *(f"/distkv.v1.Inference/{name}" for name in ("Generate", "Abort", "GetModelInfo")),
    *(f"/distkv.v1.Control/{name}" for name in ("GetLoad", "GetPool", "Drain")),
    "/distkv.v1.Inference/GenerateStream",
    "/grpc.health.v1.Health/Watch",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
]


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text(f"# who may call\nalice {ALICE}\n\nbob {BOB}\nops {ADMIN} admin\n")
    return str(file)


@pytest.fixture
def guarded(loop: Loop, shared: Running, key_file: str) -> Any:
    with running(loop, shared.llm, api_key_file=key_file) as service:
        yield service


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong-0123456789abcdef"),)])
def test_every_method_but_health_check_is_closed(
    guarded: Running, method: str, metadata: Any
) -> None:
    streams = "Stream" in method or "Watch" in method
    if "Reflection" in method:
        call = guarded.channel.stream_stream(method)
        failure = failure_of(call, iter([b""]), metadata=metadata)
    elif streams:
        failure = failure_of(guarded.channel.unary_stream(method), b"", metadata=metadata)
    else:
        failure = failure_of(guarded.channel.unary_unary(method), b"", metadata=metadata)

    assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    assert failure.text == (
        "the API key is not known"
        if metadata
        else "no API key, expected metadata authorization: Bearer KEY"
    )


def test_health_check_is_open(guarded: Running) -> None:
    health: Any = health_pb2_grpc.HealthStub(guarded.channel)
    answer = health.Check(health_pb2.HealthCheckRequest())

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert {"/grpc.health.v1.Health/Check"} == OPEN_METHODS


def test_keys_let_in_and_only_admins_control(guarded: Running) -> None:
    with Client(guarded.address, api_key=ALICE) as alice:
        assert alice.generate([5], {"max_tokens": 2, "ignore_eos": True}).finished
        for call in (alice.load, alice.pool, alice.drain):
            with pytest.raises(NotAllowed, match="the API key of alice is not an admin's"):
                call()
    with Client(guarded.address, api_key=ADMIN) as admin:
        assert admin.load().num_blocks == 96


def test_callers_cannot_touch_each_others_requests(guarded: Running) -> None:
    with (
        Client(guarded.address, api_key=ALICE) as alice,
        Client(guarded.address, api_key=BOB) as bob,
        Client(guarded.address, api_key=ADMIN) as admin,
    ):
        stream = alice.stream([5], {"max_tokens": 200, "ignore_eos": True}, request_id="x")
        assert next(stream).request_id == "x"
        with pytest.raises(RequestNotFound):
            bob.abort("x")
        # The same name is free to others.
        assert bob.generate([5], {"max_tokens": 1}, request_id="x").request_id == "x"
        assert [one.request_id for one in admin.pool().requests] == ["alice/x"]
        alice.abort("x")
        stream.close()


def test_reflection_lists_what_there_is(shared: Running) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(shared.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]))

    assert [one.name for one in answer.list_services_response.service] == [
        "distkv.v1.Control",
        "distkv.v1.Inference",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


def test_the_key_of_the_environment_is_an_admins(
    loop: Loop, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTKV_API_KEY", ADMIN)
    with running(loop, shared.llm) as service:
        assert service.client.load().num_blocks == 96
        monkeypatch.delenv("DISTKV_API_KEY")
        with Client(service.address) as stranger, pytest.raises(Unauthenticated):
            stranger.model_info()


def make_certificates(folder: Path) -> None:
    """An authority, and certificates of a server and of a client that it signed."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca")
    for name in ("server", "client"):
        names = "subjectAltName=IP:127.0.0.1"
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl("req", "-x509", *new, *files, *authority, "-subj", f"/CN={name}", "-addext", names)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def test_tls(loop: Loop, shared: Running, certificates: Path) -> None:
    pair = {
        "tls_cert": str(certificates / "server.pem"),
        "tls_key": str(certificates / "server.key"),
    }
    with running(loop, shared.llm, **pair) as service:
        with Client(service.address, tls_ca=str(certificates / "ca.pem")) as client:
            assert client.model_info().model == "small"
        for other in ({}, {"tls": True}):
            with Client(service.address, max_retries=0, **other) as client:
                with pytest.raises(Unavailable):
                    client.model_info()


def test_mutual_tls_asks_for_a_certificate(loop: Loop, shared: Running, certificates: Path) -> None:
    def path(name: str) -> str:
        return str(certificates / name)

    with running(
        loop,
        shared.llm,
        tls_cert=path("server.pem"),
        tls_key=path("server.key"),
        tls_client_ca=path("ca.pem"),
    ) as service:
        trust = {"tls_ca": path("ca.pem"), "max_retries": 0}
        pair = {"tls_cert": path("client.pem"), "tls_key": path("client.key")}
        with Client(service.address, **trust, **pair) as client:
            assert client.model_info().model == "small"
        with Client(service.address, **trust) as client, pytest.raises(Unavailable):
            client.model_info()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_other_machines_are_kept_out_by_default(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host={host} can be reached from other machines"):
        check_exposure(ServerSettings(host=host), has_keys=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.3"])
def test_this_machine_is_let_in(host: str) -> None:
    check_exposure(ServerSettings(host=host), has_keys=False)


def test_exposure_needs_tls_and_knowing_who_calls() -> None:
    open_to_all: dict[str, Any] = {"host": "0.0.0.0"}
    tls: dict[str, Any] = {"tls_cert": "c", "tls_key": "k"}
    with pytest.raises(ConfigError, match=r"it needs TLS \(--tls-cert, --tls-key\), or --insecure"):
        check_exposure(ServerSettings(**open_to_all), has_keys=True)
    with pytest.raises(ConfigError, match="it needs keys .* or client certificates, or --insecure"):
        check_exposure(ServerSettings(**open_to_all, **tls), has_keys=False)

    check_exposure(ServerSettings(**open_to_all, **tls), has_keys=True)
    check_exposure(ServerSettings(**open_to_all, **tls, tls_client_ca="a"), has_keys=False)
    check_exposure(ServerSettings(**open_to_all, insecure_public=True), has_keys=False)


def test_a_server_checks_its_exposure(loop: Loop, shared: Running) -> None:
    async def make() -> None:
        Server(shared.llm, ServerSettings(host="0.0.0.0"), model_name="x")

    with pytest.raises(ConfigError, match="can be reached from other machines"):
        loop.run(make())


def test_a_port_in_use_is_told(loop: Loop, shared: Running) -> None:
    async def start() -> None:
        settings = ServerSettings(port=shared.server.port, http_port=None)
        await Server(shared.llm, settings, model_name="x").start()

    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{shared.server.port}"):
        loop.run(start())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice short", "the API key of alice has 5 characters, must have at least 16"),
        ("alice", "line 1 has 1 words, must be NAME KEY or NAME KEY admin"),
        (f"alice {ALICE} root", "line 1 has 3 words"),
        (f"a/b {ALICE}", "line 1 has 2 words"),
        (f"alice {ALICE}\nbob {ALICE}", "the API key of bob is another caller's too"),
        ("# nobody", "has no keys"),
    ],
)
def test_wrong_key_files_are_refused_without_showing_a_key(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)

    with pytest.raises(ConfigError, match=message) as raised:
        load_keys(str(file), None)
    assert ALICE not in str(raised.value)


def test_a_name_may_have_two_keys() -> None:
    keys = Keys([(ALICE, Caller("alice", False)), (BOB, Caller("alice", False))])

    assert keys.caller_of(ALICE) == keys.caller_of(BOB) == Caller("alice", False)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_a_key_is_taken_out_of_its_header(header: str | None, key: str | None) -> None:
    assert bearer(header) == key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, "port=70000 must be within 0..65535"),
        ({"max_message_mib": 0}, "max_message_mib=0 must be within 1..1024"),
        ({"max_num_requests": 0}, "max_num_requests=0 must be at least 1"),
        ({"quota_tokens": 0}, "quota_tokens=0 must be at least 1"),
        ({"keepalive_s": 0.0}, "keepalive_s=0.0 must be within 1..86400"),
        ({"drain_grace_s": -1.0}, "drain_grace_s=-1.0 must be within 0..86400"),
        ({"tls_cert": "c"}, "tls_cert and tls_key go together"),
        ({"tls_client_ca": "c"}, "tls_client_ca needs tls_cert and tls_key"),
    ],
)
def test_wrong_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**given)
