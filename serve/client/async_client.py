"""`AsyncClient`: a DistKV server from asyncio."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any

import grpc

from distkv_jax.engine.outputs import RequestOutput, snapshot
from serve.client.blocking_client import Sampling, new_result
from serve.client.connection import connect, heard_of
from serve.client.tries import Tries
from serve.client_settings import ClientSettings
from serve.proto.distkv.v1 import control_pb2, inference_pb2
from serve.translate import add_response, message_of_request


class AsyncClient:
    """`Client` for asyncio: the same calls, arguments and errors.

    One event loop owns it. Close it, or use it in an `async with`.
    """

    def __init__(self, server: str = "127.0.0.1:50051", **settings: Any) -> None:
        """Prepare; the connection is made by the first call. Needs a running event loop.

        Args:
            server: HOST:PORT.
            **settings: Fields of `ClientSettings`.

        Raises:
            ConfigError: A setting cannot be.
            OSError: A file cannot be read.
        """
        self._connection = connect(grpc.aio, ClientSettings(server=server, **settings))
        self._inference = self._connection.inference
        self._control = self._connection.control
        self._metadata = self._connection.metadata

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        await self._connection.channel.close()

    async def generate(
        self,
        prompt: str | Sequence[int],
        sampling_params: Sampling | None = None,
        *,
        request_id: str = "",
        priority: int = 0,
        timeout_s: float | None = None,
        durable: bool | None = None,
    ) -> RequestOutput:
        """Generate for one prompt; as `Client.generate`. Cancelling the task cancels it."""
        message = message_of_request(
            prompt, sampling_params, request_id=request_id, priority=priority, durable=durable
        )
        output = new_result(prompt)
        if durable:
            return [one async for one in self._stream(output, message, timeout_s)][-1]
        answer = await self._call(self._inference.Generate, message, timeout_s)
        add_response(output, answer, time.monotonic())
        return output

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling_params: Sampling | None = None,
        *,
        request_id: str = "",
        priority: int = 0,
        timeout_s: float | None = None,
        durable: bool | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate for one prompt, giving the output so far; as `Client.stream`."""
        message = message_of_request(
            prompt, sampling_params, request_id=request_id, priority=priority, durable=durable
        )
        return self._stream(new_result(prompt), message, timeout_s)

    def attach(
        self,
        request_id: str,
        offset: int | Sequence[int] = 0,
        *,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Read a durable request; as `Client.attach`."""
        offsets = [offset] if isinstance(offset, int) else offset
        message = inference_pb2.AttachRequest(
            request_id=request_id, offsets=offsets, return_prompt_token_ids=True
        )
        return self._stream(new_result(()), message, timeout_s)

    async def _stream(
        self,
        output: RequestOutput,
        message: inference_pb2.GenerateRequest | inference_pb2.AttachRequest,
        timeout_s: float | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        tries = Tries(self._connection, message, output, timeout_s)
        while True:
            call = tries.call()
            try:
                async for piece in call:
                    tries.heard_something()
                    add_response(output, piece, time.monotonic())
                    yield snapshot(output)
                return
            except grpc.RpcError as error:
                await asyncio.sleep(tries.wait_before_next(heard_of(error)))
            finally:
                call.cancel()

    async def abort(self, request_id: str) -> None:
        """End one of this caller's live requests; as `Client.abort`."""
        await self._call(self._inference.Abort, inference_pb2.AbortRequest(request_id=request_id))

    async def model_info(self) -> inference_pb2.GetModelInfoResponse:
        """Ask what is served."""
        return await self._call(self._inference.GetModelInfo, inference_pb2.GetModelInfoRequest())

    async def load(self) -> control_pb2.GetLoadResponse:
        """Ask how busy the server is; an admin's call."""
        return await self._call(self._control.GetLoad, control_pb2.GetLoadRequest())

    async def pool(self) -> control_pb2.GetPoolResponse:
        """Ask where every block is, and who owes whom; an admin's call."""
        return await self._call(self._control.GetPool, control_pb2.GetPoolRequest())

    async def watch(
        self, interval_s: float | None = None
    ) -> AsyncGenerator[control_pb2.Snapshot, None]:
        """Watch the server; as `Client.watch`."""
        message = control_pb2.WatchRequest(interval_s=interval_s)
        retries, has_begun = self._connection.retries(None), False
        while True:
            call = self._control.Watch(message, metadata=self._metadata)
            try:
                async for snapshot in call:
                    has_begun = True
                    yield snapshot
                return
            except grpc.RpcError as error:
                await asyncio.sleep(retries.wait_before_next(heard_of(error), has_begun=has_begun))
            finally:
                call.cancel()

    async def profile(self, duration_s: float | None = None) -> str:
        """Have the server trace itself; as `Client.profile`."""
        message = control_pb2.ProfileRequest(duration_s=duration_s)
        return (await self._call(self._control.Profile, message)).folder

    async def drain(self, grace_s: float | None = None) -> int:
        """Stop the server; as `Client.drain`."""
        message = control_pb2.DrainRequest(grace_s=grace_s)
        return (await self._call(self._control.Drain, message)).num_requests

    async def _call(
        self, rpc: Callable[..., Any], message: object, timeout_s: float | None = None
    ) -> Any:
        retries = self._connection.retries(timeout_s)
        while True:
            try:
                return await rpc(message, timeout=retries.time_left(), metadata=self._metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(retries.wait_before_next(heard_of(error), has_begun=False))
