"""Servers that run in a thread of their own, over one small engine."""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from serve.client import Client
from serve.observe.record import Record
from serve.proto.distkv.v1 import control_pb2_grpc, inference_pb2_grpc
from serve.proto.distkv.v1 import inference_pb2 as pb
from serve.server import Server
from serve.settings import ServerSettings
from serve.stream import Stream

T = TypeVar("T")
TIMEOUT_S = 30
Code = grpc.StatusCode


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def call_soon_threadsafe(self, function: Any, *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Running:
    """A server that runs, and a client of it that does not try again."""

    def __init__(self, loop: Loop, llm: LLM, settings: ServerSettings) -> None:
        self.loop = loop
        self.llm = llm
        self.server = loop.run(self._start(settings))
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.address, [("grpc.enable_retries", 0)])
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.client = Client(self.address, max_retries=0, reattach_s=0, timeout_s=TIMEOUT_S)

    async def _start(self, settings: ServerSettings) -> Server:
        server = Server(self.llm, settings, model_name="small")
        await server.start()
        return server

    def on_loop(self, function: Any, *arguments: Any) -> Any:
        """Call something that the loop owns."""

        async def call() -> Any:
            return function(*arguments)

        return self.loop.run(call())

    def wait(self) -> bool:
        """Wait for the end; whether every request could finish."""
        return self.loop.run(self.server.wait())

    def close(self) -> None:
        self.client.close()
        self.channel.close()
        self.on_loop(self.server.stop_now)
        self.wait()


@contextlib.contextmanager
def running(loop: Loop, llm: LLM, **settings: Any) -> Iterator[Running]:
    """Run one more server over an engine."""
    # Only tests of HTTP have HTTP.
    service = Running(loop, llm, ServerSettings(**{"port": 0, "http_port": None} | settings))
    try:
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def paused(llm: LLM) -> Iterator[None]:
    """Hold the engine's thread between two steps: what comes meanwhile is not even queued."""
    is_held, may_go = threading.Event(), threading.Event()

    def hold(engine: Engine) -> None:
        is_held.set()
        assert may_go.wait(TIMEOUT_S)

    held = llm.thread.call_soon(hold)
    assert is_held.wait(TIMEOUT_S)
    try:
        yield
    finally:
        may_go.set()
        held.result(TIMEOUT_S)


def wait_until(is_so: Any, what: str) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


def wait_submitted(service: Running, count: int) -> None:
    """Wait until so many requests are under way and the engine's thread has them."""
    quota = service.server.dispatcher.quota
    wait_until(lambda: quota.num_requests == count, f"{count} requests come")
    service.on_loop(lambda: None)


def request_of(
    *tokens: int, request_id: str = "", text: str = "", **sampling: Any
) -> pb.GenerateRequest:
    """A request as a client of another language would send it, greedy unless told otherwise."""
    sampling = {"temperature": 0.0} | sampling
    message = pb.GenerateRequest(request_id=request_id, sampling=pb.SamplingParams(**sampling))
    if text:
        message.text = text
    elif tokens:
        message.token_ids.ids.extend(tokens)
    return message


def record_of(request: Request) -> Record:
    """The record of a request that no dispatcher opened."""
    return Record(
        request_id=request.request_id,
        caller="",
        operation="test",
        params=request.params,
        carrier={},
    )


def a_stream(max_unread: int | None, n: int = 1) -> Stream:
    """A stream that no dispatcher opened."""
    params = SamplingParams(n=n)
    request = Request(request_id="r", prompt_token_ids=(1,), params=params)
    stream = Stream("r", record_of(request), max_unread=max_unread)
    stream.begin(request)
    return stream


class Failure(NamedTuple):
    """How a call failed."""

    code: grpc.StatusCode
    text: str
    fields: dict[str, str]
    retry_s: float | None


def failure_of(call: Any, *arguments: Any, **named: Any) -> Failure:
    """Make a call that must fail, and read its status."""
    try:
        answer = call(*arguments, **named)
        if not isinstance(answer, Message):
            list(answer)
    except grpc.RpcError as error:
        return failure_in(error)
    raise AssertionError("it did not fail")


def failure_in(error: Any) -> Failure:
    """Read the status of a failed call, with its details."""
    fields, retry_s = {}, None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            for detail in status.details:
                if detail.Unpack(bad):
                    fields = {one.field: one.description for one in bad.field_violations}
                elif detail.Unpack(retry):
                    retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(error.code(), error.details(), fields, retry_s)


def in_background(call: Any, *arguments: Any, **named: Any) -> "concurrent.futures.Future[Any]":
    """Run something that blocks in a thread."""
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(call(*arguments, **named))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result
