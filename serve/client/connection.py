"""A channel to a server and the stubs on it, which both clients have."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grpc

from distkv_jax.errors import RequestError
from serve.client.retries import Retries
from serve.client_settings import ClientSettings
from serve.errors import Heard, hear
from serve.proto.distkv.v1 import control_pb2_grpc, inference_pb2_grpc

TOO_LARGE = "message larger than max"
"""How gRPC itself words it; the server has no say in it."""


class Maker(Protocol):
    """What makes channels: `grpc`, or `grpc.aio`."""

    @property
    def secure_channel(self) -> Callable[..., Any]:
        """Make one with TLS."""
        ...

    @property
    def insecure_channel(self) -> Callable[..., Any]:
        """Make one in the clear."""
        ...


class Connection(NamedTuple):
    """How a client reaches its server.

    Attributes:
        channel: Of the client's kind.
        inference: Stub of `Inference`.
        control: Stub of `Control`.
        metadata: What every call carries.
        settings: As given.
    """

    channel: Any
    inference: inference_pb2_grpc.InferenceStub
    control: control_pb2_grpc.ControlStub
    metadata: Sequence[tuple[str, str]]
    settings: ClientSettings

    def retries(self, timeout_s: float | None) -> Retries:
        """Start to count the tries of a call; None takes the settings' time."""
        timeout_s = self.settings.timeout_s if timeout_s is None else timeout_s
        return Retries(self.settings.max_retries, timeout_s)


def connect(maker: Maker, settings: ClientSettings) -> Connection:
    """Prepare a connection; the first call makes it.

    Raises:
        ConfigError: A setting cannot be.
        OSError: A file cannot be read.
    """
    metadata, options = settings.metadata(), settings.options()
    if settings.has_tls:
        trust = grpc.ssl_channel_credentials(*settings.certificates())
        channel = maker.secure_channel(settings.server, trust, options)
    else:
        channel = maker.insecure_channel(settings.server, options)
    return Connection(
        channel,
        inference_pb2_grpc.InferenceStub(channel),
        control_pb2_grpc.ControlStub(channel),
        metadata,
        settings,
    )


def heard_of(error: Any) -> Heard:
    """Understand a failed call, of either kind of client."""
    heard = hear(error.code(), error.details() or "", error.trailing_metadata() or ())
    text = str(heard.error)
    if heard.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or TOO_LARGE not in text:
        return heard
    whose = "client" if "CLIENT" in text else "server"
    what = "request" if "SERVER: Received" in text else "answer"
    refusal = RequestError(f"the {what} is over the {whose}'s max_message_mib: {text}")
    return heard._replace(error=refusal, retry_s=None)
