"""`Client`: a DistKV server from blocking code."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from distkv_jax.engine.outputs import RequestMetrics, RequestOutput, snapshot
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client.connection import connect, heard_of
from serve.client.tries import Tries
from serve.client_settings import ClientSettings
from serve.proto.distkv.v1 import control_pb2, inference_pb2
from serve.translate import add_response, message_of_request

T = TypeVar("T")

Sampling = SamplingParams | Mapping[str, Any]
"""All parameters, or only those that differ from the model's defaults."""


class Client:
    """Calls a server; safe to use from several threads.

    Errors are those that the server raised, with its text. Close it, or use it in a `with`.
    """

    def __init__(self, server: str = "127.0.0.1:50051", **settings: Any) -> None:
        """Prepare; the connection is made by the first call.

        Args:
            server: HOST:PORT.
            **settings: Fields of `ClientSettings`.

        Raises:
            ConfigError: A setting cannot be.
            OSError: A file cannot be read.
        """
        self._connection = connect(grpc, ClientSettings(server=server, **settings))
        self._inference = self._connection.inference
        self._control = self._connection.control
        self._metadata = self._connection.metadata

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        self._connection.channel.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling_params: Sampling | None = None,
        *,
        request_id: str = "",
        priority: int = 0,
        timeout_s: float | None = None,
        durable: bool | None = None,
    ) -> RequestOutput:
        """Generate for one prompt.

        Args:
            prompt: Text or token ids.
            sampling_params: How to sample; None for the model's defaults.
            request_id: A name to abort it by; empty takes one from the server.
            priority: Lower first, where the server schedules by priority.
            timeout_s: Seconds for it, retries included; None takes the client's setting.
            durable: Have the server keep it: it goes on when this process or the server dies. The
                connection is made again for up to the setting `reattach_s`. None lets the server
                decide, and does not do that.

        Raises:
            DistKVError: As the server says: a `RequestError` is final, `QueueFull` and
                `Unavailable` may be tried later.
        """
        message = message_of_request(
            prompt, sampling_params, request_id=request_id, priority=priority, durable=durable
        )
        output = new_result(prompt)
        if durable:
            *_, last = self._stream(output, message, timeout_s)
            return last
        answer = self._call(self._inference.Generate, message, timeout_s)
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
    ) -> Generator[RequestOutput, None, None]:
        """Generate for one prompt, giving the output so far for each piece that comes.

        The request starts with the first output that is asked for. Closing the iterator early
        cancels it, unless it is durable. Arguments and errors are those of `generate`.
        """
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
    ) -> Generator[RequestOutput, None, None]:
        """Read a durable request of this caller's, giving the output so far after every piece.

        Outputs have what came from the offset on, text and tokens. Closing the iterator early
        changes nothing for the request. A lost connection is made again, as by `stream`.

        Args:
            request_id: As it was named.
            offset: Tokens of the first sample to leave out; a list is of all samples.
            timeout_s: As for `generate`.

        Raises:
            RequestNotFound: There is none of that name, or it is no longer kept.
            RequestError: An offset is beyond what there is.
            DistKVError: As `generate`.
        """
        offsets = [offset] if isinstance(offset, int) else offset
        message = inference_pb2.AttachRequest(
            request_id=request_id, offsets=offsets, return_prompt_token_ids=True
        )
        return self._stream(new_result(()), message, timeout_s)

    def _stream(
        self,
        output: RequestOutput,
        message: inference_pb2.GenerateRequest | inference_pb2.AttachRequest,
        timeout_s: float | None,
    ) -> Generator[RequestOutput, None, None]:
        tries = Tries(self._connection, message, output, timeout_s)
        while True:
            call = tries.call()
            try:
                for piece in call:
                    tries.heard_something()
                    add_response(output, piece, time.monotonic())
                    yield snapshot(output)
                return
            except grpc.RpcError as error:
                time.sleep(tries.wait_before_next(heard_of(error)))
            finally:
                call.cancel()

    def abort(self, request_id: str) -> None:
        """End one of this caller's live requests.

        Raises:
            RequestNotFound: It has none of that name.
            DistKVError: As `generate`.
        """
        self._call(self._inference.Abort, inference_pb2.AbortRequest(request_id=request_id))

    def model_info(self) -> inference_pb2.GetModelInfoResponse:
        """Ask what is served."""
        return self._call(self._inference.GetModelInfo, inference_pb2.GetModelInfoRequest())

    def load(self) -> control_pb2.GetLoadResponse:
        """Ask how busy the server is; an admin's call."""
        return self._call(self._control.GetLoad, control_pb2.GetLoadRequest())

    def pool(self) -> control_pb2.GetPoolResponse:
        """Ask where every block is, and who owes whom; an admin's call."""
        return self._call(self._control.GetPool, control_pb2.GetPoolRequest())

    def watch(self, interval_s: float | None = None) -> Generator[control_pb2.Snapshot, None, None]:
        """Watch the server: a picture at once and after every interval; an admin's call.

        Closing the iterator ends it. A server that stops ends it with `Unavailable`.

        Args:
            interval_s: Seconds between two, 0.1 to 60; None for the server's default, 1.
        """
        message = control_pb2.WatchRequest(interval_s=interval_s)
        retries, has_begun = self._connection.retries(None), False
        while True:
            call = self._control.Watch(message, metadata=self._metadata)
            try:
                for snapshot in call:
                    has_begun = True
                    yield snapshot
                return
            except grpc.RpcError as error:
                time.sleep(retries.wait_before_next(heard_of(error), has_begun=has_begun))
            finally:
                call.cancel()

    def profile(self, duration_s: float | None = None) -> str:
        """Have the server trace itself with JAX's profiler; an admin's call.

        Args:
            duration_s: Seconds, 0.1 to 60; None for the server's default, 3.

        Returns:
            The folder on the server's machine that has the trace.
        """
        message = control_pb2.ProfileRequest(duration_s=duration_s)
        return self._call(self._control.Profile, message).folder

    def drain(self, grace_s: float | None = None) -> int:
        """Stop the server when accepted requests have ended; an admin's call.

        Args:
            grace_s: Seconds they have; None for the server's setting.

        Returns:
            How many there are.
        """
        message = control_pb2.DrainRequest(grace_s=grace_s)
        return self._call(self._control.Drain, message).num_requests

    def _call(self, rpc: Callable[..., T], message: object, timeout_s: float | None = None) -> T:
        retries = self._connection.retries(timeout_s)
        while True:
            try:
                return rpc(message, timeout=retries.time_left(), metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(retries.wait_before_next(heard_of(error), has_begun=False))


def new_result(prompt: str | Sequence[int]) -> RequestOutput:
    """The output of a request that was not sent yet."""
    is_text = isinstance(prompt, str)
    return RequestOutput(
        request_id="",
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=[] if is_text else [int(token) for token in prompt],
        prompt_logprobs=None,
        outputs=[],
        finished=False,
        metrics=RequestMetrics(arrival_time=time.monotonic()),
    )
