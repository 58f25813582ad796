"""Who has no key takes nobody's place: the headers decide, and no call waits without a bound."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

import serve.gate
import serve.server
from serve.client import Client
from tests.serve.running import TIMEOUT_S, Code, Loop, Running, failure_in, running, wait_until

ALICE = "alice-0123456789abcdef"
STREAM, WHOLE = (f"/distkv.v1.Inference/{name}" for name in ("GenerateStream", "Generate"))
CHECK, DRAIN = "/grpc.health.v1.Health/Check", "/distkv.v1.Control/Drain"


@pytest.fixture
def narrow(
    loop: Loop, shared: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """A server with keys and room for 8 calls, of which open ones may have 3."""
    monkeypatch.setattr(serve.server, "OTHER_RPCS", 4)
    monkeypatch.setattr(serve.gate, "MAX_OPEN_CALLS", 3)
    file = tmp_path / "keys"
    file.write_text(f"alice {ALICE}\n")
    with running(loop, shared.llm, api_key_file=str(file), max_num_requests=4) as service:
        yield service


@contextlib.contextmanager
def silent(service: Running, method: str, count: int, key: str | None = None) -> Iterator[Any]:
    """Have calls that send headers and no message, each on a connection of its own."""
    may_end = threading.Event()

    def nothing() -> Iterator[bytes]:
        may_end.wait(TIMEOUT_S)
        yield from ()

    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    with contextlib.ExitStack() as stack:
        stack.callback(may_end.set)
        calls = []
        for _ in range(count):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = stack.enter_context(grpc.insecure_channel(service.address, options))
            calls.append(channel.stream_stream(method)(nothing(), metadata=metadata))
        yield calls


def ended(call: Any) -> Any:
    """How a call without a message ended, which it must without its help."""
    over = threading.Event()
    assert not call.add_callback(over.set) or over.wait(10), "it waits without end"
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    return failure_in(raised.value)


def check_serves(service: Running) -> None:
    with Client(service.address, api_key=ALICE, max_retries=0) as alice:
        assert alice.generate([5], {"max_tokens": 2, "ignore_eos": True}).finished


@pytest.mark.parametrize("method", [STREAM, WHOLE, DRAIN, "/no.such/Method"])
def test_without_a_key_a_call_is_refused_before_its_message(narrow: Running, method: str) -> None:
    with silent(narrow, method, 20) as calls:
        for call in calls:
            assert ended(call).code is Code.UNAUTHENTICATED
        check_serves(narrow)


def test_open_calls_have_places_of_their_own_and_little_time(
    narrow: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.gate, "OPEN_MESSAGE_S", 1.0)
    with silent(narrow, CHECK, 6) as calls:
        codes = sorted(ended(call).code.name for call in calls[:6])
        check_serves(narrow)
    assert codes == ["DEADLINE_EXCEEDED"] * 3 + ["RESOURCE_EXHAUSTED"] * 3
    check = narrow.channel.unary_unary(
        CHECK,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("method", [STREAM, WHOLE])
def test_a_message_that_does_not_come_is_not_waited_for(
    narrow: Running, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(serve.gate, "MESSAGE_S", 0.1)
    with silent(narrow, method, 20, ALICE) as calls:
        codes = {ended(call).code for call in calls}
        # The calls beyond all places are refused by gRPC itself.
        assert Code.DEADLINE_EXCEEDED in codes <= {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
        check_serves(narrow)


@pytest.mark.parametrize("method", [STREAM, WHOLE])
def test_a_call_that_ends_without_a_message_is_told(narrow: Running, method: str) -> None:
    call = narrow.channel.stream_stream(method)
    metadata = (("authorization", f"Bearer {ALICE}"),)
    failure = ended(call(iter(()), metadata=metadata))
    assert (failure.code, failure.text) == (
        Code.INVALID_ARGUMENT,
        "the call has no message, must have one",
    )


def test_a_message_without_its_caller_holds_nothing(narrow: Running) -> None:
    with silent(narrow, WHOLE, 4, ALICE) as calls:
        for call in calls:
            call.cancel()
        wait_until(lambda: all(call.done() for call in calls), "they end")
        check_serves(narrow)
