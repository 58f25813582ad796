"""A client that does not read holds nothing once its request has ended, however it did."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import serve.stream
from distkv_jax.engine.outputs import Update
from distkv_jax.errors import RequestCancelled, SlowReader
from serve.proto.distkv.v1 import inference_pb2_grpc
from serve.stream import Stream
from tests.serve.running import (
    Code,
    Loop,
    Running,
    a_stream,
    failure_of,
    request_of,
    running,
    wait_until,
)

MUCH: dict[str, Any] = {
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 1.0,
    "n": 8,
    "logprobs": 20,
}
"""More than the buffers between take."""


@pytest.fixture
def stuck(loop: Loop, shared: Running) -> Iterator[tuple[Running, Any]]:
    """A server, and a stream whose pieces wait for a client that takes little ahead."""
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with (
        running(loop, shared.llm, max_unread_tokens=10_000) as service,
        grpc.insecure_channel(service.address, small) as channel,
    ):
        stub = inference_pb2_grpc.InferenceStub(channel)
        stream = stub.GenerateStream(request_of(5, request_id="stuck", **MUCH))
        next(stream)
        (one,) = service.server.dispatcher._streams.values()
        wait_until(lambda: one._num_unread > 200, "a write waits")
        yield service, stream


def is_free(service: Running) -> bool:
    return not service.server.dispatcher.quota.num_requests and not service.llm.pool().placement


def test_an_abort_does_not_wait_for_the_reader(stuck: tuple[Running, Any]) -> None:
    service, stream = stuck
    service.client.abort("stuck")
    wait_until(lambda: is_free(service), "its slot is free")

    failure = failure_of(list, stream)
    assert (failure.code, failure.text) == (Code.CANCELLED, "the request was aborted")


def test_a_stop_does_not_wait_for_the_reader(stuck: tuple[Running, Any]) -> None:
    service, _ = stuck
    service.on_loop(service.server.stop_now)

    assert not service.wait()
    assert is_free(service)


@pytest.fixture
def short_last_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.stream, "LAST_READ_S", 1.0)


# The order matters: a request that ends before the time is short has the long one.
def test_the_end_is_kept_for_a_while(short_last_read: None, stuck: tuple[Running, Any]) -> None:
    service, stream = stuck
    wait_until(lambda: is_free(service), "its slot is free")

    failure = failure_of(list, stream)
    assert failure.code is Code.RESOURCE_EXHAUSTED
    assert failure.text.startswith("the end was not read within ")


async def forever() -> None:
    await asyncio.Event().wait()


async def ended_by(stream: Stream, act: Any) -> Exception | None:
    """Fail, or end, a stream whose piece nobody takes."""
    asyncio.get_running_loop().call_later(0.01, act)
    try:
        async with asyncio.timeout(5):
            await stream.write(forever())
    except Exception as error:
        return error
    return None


def test_a_write_ends_with_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.stream, "LAST_READ_S", 0.05)

    async def check() -> None:
        failed = a_stream(max_unread=9)
        error = RequestCancelled("the request was aborted")
        assert await ended_by(failed, lambda: failed.fail(error)) is error
        assert await ended_by(failed, lambda: None) is error

        ended = a_stream(max_unread=9)
        last = Update(ended.request, 0, (1,), finish_reason="length")
        assert isinstance(await ended_by(ended, lambda: ended.add(last)), SlowReader)
        assert ended.has_failed

    asyncio.run(check())


def test_a_write_that_fails_by_itself_keeps_its_error() -> None:
    async def fail() -> None:
        raise TimeoutError("of the transport")

    async def check() -> None:
        with pytest.raises(TimeoutError, match="of the transport"):
            await a_stream(max_unread=9).write(fail())

    asyncio.run(check())
