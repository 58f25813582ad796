"""A gRPC server over one `LLM`: its parts, its port, and how it stops."""

import asyncio
import contextlib
import logging
import math
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distkv_jax.engine.engine import Engine
from distkv_jax.environment import api_key
from distkv_jax.errors import ConfigError, EngineStopped, Unavailable
from distkv_jax.llm import LLM
from serve.control_service import ControlService
from serve.dispatch import Dispatcher
from serve.gate import Gate
from serve.inference_service import InferenceService
from serve.keys import load_keys
from serve.proto.distkv.v1 import (
    control_pb2,
    control_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from serve.quota import Quota
from serve.settings import ServerSettings, check_exposure

logger = logging.getLogger(__name__)

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
CONTROL = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
MIN_PING_INTERVAL_MS = 10_000
"""Clients may probe a connection this often."""
OTHER_RPCS = 256
"""Calls at once besides requests: watches, looks at load and pools."""
LAST_WORDS_S = 2.0
"""For statuses to reach clients when all requests have ended."""
WATCH_S = 1.0
"""Between two looks at whether the engine still lives."""


class Server:
    """Serves one model until it is drained, stopped, or its engine fails.

    The event loop owns it. Health of "" says that the process lives, that of
    `distkv.v1.Inference` whether it takes requests.

    Attributes:
        settings: As given.
        has_keys: Whether callers need one.
        port: TCP port, once started.
        dispatcher: Between RPCs and engine.
    """

    def __init__(self, llm: LLM, settings: ServerSettings, *, model_name: str) -> None:
        """Make the parts; nothing listens yet. Needs a running event loop.

        Raises:
            ConfigError: Keys or certificates cannot be, or other machines could connect to a
                server that must not let them.
            OSError: A file cannot be read.
        """
        self.settings = settings
        keys = load_keys(settings.api_key_file, api_key())
        self.has_keys = len(keys) > 0
        check_exposure(settings, has_keys=self.has_keys)
        self._credentials = credentials_of(settings)
        self.port = 0
        quota = Quota(
            max_requests=settings.max_num_requests,
            caller_requests=settings.quota_requests,
            caller_tokens=settings.quota_tokens,
        )
        self.dispatcher = Dispatcher(llm, quota, max_unread=settings.max_unread_tokens)
        # The package chooses the module of `aio` by Python's version, where pyright does not look.
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._grpc = grpc.aio.server(
            interceptors=[Gate(keys)],
            options=options_of(settings),
            maximum_concurrent_rpcs=settings.max_num_requests + OTHER_RPCS,
        )
        self._stopping: asyncio.Task[bool] | None = None
        self._hurry = asyncio.Event()
        self._is_over = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        service = InferenceService(
            self.dispatcher,
            settings.served_model_name or model_name,
            stream_interval_s=settings.stream_interval_ms / 1000,
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(service, self._grpc)
        control_pb2_grpc.add_ControlServicer_to_server(
            ControlService(self.dispatcher, self.drain), self._grpc
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (INFERENCE, CONTROL, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address cannot be had.
        """
        host = self.settings.host
        address = f"[{host}]" if ":" in host and not host.startswith("[") else host
        address = f"{address}:{self.settings.port}"
        try:
            if self._credentials is None:
                self.port = self._grpc.add_insecure_port(address)
            else:
                self.port = self._grpc.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        self._watch = asyncio.create_task(self._watch_engine())

    def drain(self, grace_s: float | None = None) -> None:
        """Take no more requests, let those accepted finish, then stop; returns at once.

        Asked for again, it changes nothing. Where `grace_s` is None the settings have it.
        """
        if self._stopping is None:
            grace_s = self.settings.drain_grace_s if grace_s is None else grace_s
            self.dispatcher.refuse("the server is being stopped, it takes no more requests")
            self._stopping = asyncio.create_task(self._stop(grace_s))

    def stop_now(self) -> None:
        """End every request at once, then stop; returns at once."""
        self.drain(0.0)
        self._hurry.set()

    async def wait(self) -> bool:
        """Wait until the server has stopped.

        Returns:
            Whether every accepted request could finish.
        """
        await self._is_over.wait()
        assert self._stopping is not None
        return await self._stopping

    async def _stop(self, grace_s: float) -> bool:
        try:
            # Whoever watches and does not read must not hold the end up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.NOT_SERVING)
            is_clean = await self._wait_empty(grace_s)
            if not is_clean:
                count = self.dispatcher.fail_all(Unavailable("the server was stopped"))
                logger.warning("%d requests were cut off", count)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._health.enter_graceful_shutdown()
            if self._watch is not None:
                self._watch.cancel()
            await self._grpc.stop(LAST_WORDS_S)
        finally:
            self._is_over.set()
        return is_clean

    async def _wait_empty(self, grace_s: float) -> bool:
        """Wait until no request is under way; False when the grace is over or hurry asked for."""
        empty = asyncio.create_task(self.dispatcher.wait_empty())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((empty, hurry), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return not empty.cancel()

    async def _watch_engine(self) -> None:
        """Stop serving when the engine has stopped: nothing would ever be answered."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await asyncio.wrap_future(self.dispatcher.llm.thread.call_soon(is_alive))
            except EngineStopped as error:
                logger.error("%s", error)
                self.stop_now()
                return


def check_settings(settings: ServerSettings) -> None:
    """Refuse keys, addresses and certificates that a server would refuse.

    Raises:
        ConfigError: Says which, and what is allowed.
        OSError: A file cannot be read.
    """
    keys = load_keys(settings.api_key_file, api_key())
    check_exposure(settings, has_keys=len(keys) > 0)
    credentials_of(settings)


def is_alive(engine: Engine) -> bool:
    """Answer from the engine's thread."""
    del engine
    return True


def options_of(settings: ServerSettings) -> list[tuple[str, int]]:
    """List the options of the gRPC core."""
    keepalive_ms = math.ceil(settings.keepalive_s * 1000)
    return [
        ("grpc.max_receive_message_length", settings.max_message_mib * 2**20),
        ("grpc.max_send_message_length", settings.max_message_mib * 2**20),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # Two servers must not share a port by accident.
        ("grpc.so_reuseport", 0),
    ]


def credentials_of(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Load the server's certificate, and the authority of its clients'.

    Raises:
        OSError: A file cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    authority = None
    if settings.tls_client_ca is not None:
        authority = Path(settings.tls_client_ca).expanduser().read_bytes()
    pair = (
        Path(settings.tls_key).expanduser().read_bytes(),
        Path(settings.tls_cert).expanduser().read_bytes(),
    )
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authority, require_client_auth=authority is not None
    )
