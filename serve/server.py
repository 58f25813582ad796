"""A server over one `LLM`: its parts, its ports, and how it stops."""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distkv_jax.engine.engine import Engine
from distkv_jax.environment import api_key
from distkv_jax.errors import ConfigError, EngineStopped, Unavailable
from distkv_jax.llm import LLM
from serve.certificates import read_certificates
from serve.control_service import ControlService
from serve.dispatch import Dispatcher
from serve.gate import Gate
from serve.http.door import HttpDoor
from serve.http.tls import tls_context
from serve.inference_service import InferenceService
from serve.journal.requests import DurableRequests, open_journal
from serve.keys import load_keys
from serve.live.recent import Recent
from serve.live.routes import live_routes
from serve.live.watch import Watch
from serve.message_limits import check_generate
from serve.observe.metrics import Metrics
from serve.observe.metrics_route import metrics_routes
from serve.observe.profiler import Profiler
from serve.observe.request_log import RequestLog
from serve.observe.tracing import check_tracing, open_tracing
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
TRACE_S = 10.0
"""For a trace that is being taken to be written."""
WATCH_S = 1.0
"""Between two looks at whether the engine still lives."""


class Server:
    """Serves one model until it is drained, stopped, or its engine fails.

    The event loop owns it. Health of "" says that the process lives, that of
    `distkv.v1.Inference` whether it takes requests.

    Attributes:
        settings: As given.
        has_keys: Whether callers need one.
        port: TCP port of gRPC, once started.
        http_port: That of HTTP; None without it.
        dispatcher: Between RPCs and engine.
        durable: Keeps requests; None without a journal.
        watch: Shows what happens.
        metrics: Counts what happens.
    """

    def __init__(self, llm: LLM, settings: ServerSettings, *, model_name: str) -> None:
        """Make the parts; nothing listens yet. Needs a running event loop.

        Raises:
            ConfigError: Keys, certificates or the address for traces cannot be, or other machines
                could connect to a server that must not let them.
            OSError: A file cannot be read.
        """
        self.settings = settings
        keys = load_keys(settings.api_key_file, api_key())
        self.has_keys = len(keys) > 0
        check_exposure(settings, has_keys=self.has_keys)
        self._credentials = credentials_of(settings)
        self.port = 0
        self.http_port: int | None = None
        quota = Quota(
            max_requests=settings.max_num_requests,
            caller_requests=settings.quota_requests,
            caller_tokens=settings.quota_tokens,
        )
        name = settings.served_model_name or model_name
        recent = Recent()
        self.metrics = Metrics(llm, model=name)
        self._request_log = RequestLog()
        self._tracing = open_tracing(settings.otlp_traces_endpoint, model=name)
        profile_dir = settings.profile_dir
        self._profiler = Profiler(None if profile_dir is None else Path(profile_dir).expanduser())
        observers = [recent, self.metrics.requests, self._request_log]
        if self._tracing is not None:
            observers.append(self._tracing)
        self.dispatcher = Dispatcher(
            llm,
            quota,
            max_unread=settings.max_unread_tokens,
            stream_interval_s=settings.stream_interval_ms / 1000,
            observers=observers,
        )
        self.durable = None
        if settings.journal is not None:
            self.durable = DurableRequests(
                self.dispatcher,
                open_journal(settings.journal),
                keep_s=settings.journal_keep_s,
                keep_bytes=settings.journal_keep_mib * 2**20,
                max_unread=settings.max_unread_tokens,
                by_default=settings.durable_by_default,
            )
        self.watch = Watch(self.dispatcher, recent, model=name)
        # The package chooses the module of `aio` by Python's version, where pyright does not look.
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._grpc = grpc.aio.server(
            interceptors=[
                Gate(
                    keys,
                    checks_of(llm.max_model_len),
                    on_refusal=self.metrics.requests.on_refusal,
                )
            ],
            options=options_of(settings),
            maximum_concurrent_rpcs=settings.max_num_requests + OTHER_RPCS,
        )
        self._door = None
        if settings.http_port is not None:
            routes = [*live_routes(self.watch), *metrics_routes(self.metrics, self.dispatcher)]
            self._door = HttpDoor(
                self.dispatcher,
                keys,
                settings,
                name,
                routes,
                is_answering=lambda: self._is_answering,
                on_refusal=self.metrics.requests.on_refusal,
            )
        self._stopping: asyncio.Task[bool] | None = None
        self._hurry = asyncio.Event()
        self._is_over = asyncio.Event()
        self._heartbeat: asyncio.Task[None] | None = None
        self._is_answering = True
        service = InferenceService(self.dispatcher, name, self.durable)
        inference_pb2_grpc.add_InferenceServicer_to_server(service, self._grpc)
        control_pb2_grpc.add_ControlServicer_to_server(
            ControlService(self.dispatcher, self.watch, self._profiler, self.drain), self._grpc
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (INFERENCE, CONTROL, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: An address cannot be had; nothing listens then.
        """
        if self._door is not None:
            self._door.bind()
            self.http_port = self._door.port
        host = self.settings.host
        address = f"[{host}]" if ":" in host and not host.startswith("[") else host
        address = f"{address}:{self.settings.port}"
        try:
            if self._credentials is None:
                self.port = self._grpc.add_insecure_port(address)
            else:
                self.port = self._grpc.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            if self._door is not None:
                await self._door.stop(0.0)
            if self.durable is not None:
                self.durable.close()
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        if self.durable is not None and (count := await self.durable.resume()):
            logger.warning("going on with %d durable requests", count)
        await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        if self._door is not None:
            await self._door.start()
        self.watch.start()
        self.metrics.start()
        self._heartbeat = asyncio.create_task(self._watch_engine())

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
                is_clean = await self._cut_off()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._health.enter_graceful_shutdown()
            if self._heartbeat is not None:
                self._heartbeat.cancel()
            self.watch.stop()
            self.metrics.stop()
            await self._profiler.stop(TRACE_S)
            stops = [self._grpc.stop(LAST_WORDS_S)]
            if self._door is not None:
                stops.append(self._door.stop(LAST_WORDS_S))
            await asyncio.gather(*stops)
            if self.durable is not None:
                await asyncio.to_thread(self.durable.close)
            self._request_log.close()
            if self._tracing is not None:
                await self._tracing.close(LAST_WORDS_S)
        finally:
            self._is_over.set()
        return is_clean

    async def _cut_off(self) -> bool:
        """End what is under way; says whether nothing of it is lost."""
        if self.durable is not None and (count := await self.durable.leave()):
            logger.warning("%d durable requests are left to the next start", count)
        count = self.dispatcher.fail_all(Unavailable("the server was stopped"))
        if count:
            logger.warning("%d requests were cut off", count)
        return not count

    async def _wait_empty(self, grace_s: float) -> bool:
        """Wait until no request is under way; False when the grace is over or hurry asked for."""
        empty = asyncio.create_task(self.dispatcher.wait_empty())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((empty, hurry), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return not empty.cancel()

    async def _watch_engine(self) -> None:
        """Stop serving when the engine has stopped: nothing would ever be answered.

        One that answers nothing for long, as when a device hangs, may come back.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                answer = asyncio.wrap_future(self.dispatcher.llm.thread.call_soon(is_alive))
                await asyncio.wait([answer], timeout=self.settings.step_timeout_s)
                if not answer.done():
                    await self._wait_out(answer)
                await answer
            except EngineStopped as error:
                logger.error("%s", error)
                self.stop_now()
                return

    async def _wait_out(self, answer: asyncio.Future[bool]) -> None:
        """Say that nothing is served until the engine answers."""
        begin = time.monotonic() - self.settings.step_timeout_s
        logger.error(
            "no step has ended for %g s, health is NOT_SERVING", self.settings.step_timeout_s
        )
        self._is_answering = False
        await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.wait([answer])
        self._is_answering = True
        logger.warning("the engine answered after %.1f s", time.monotonic() - begin)
        if not self.dispatcher.is_draining:
            await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.SERVING)


def check_settings(settings: ServerSettings) -> None:
    """Refuse keys, addresses, certificates and folders that a server would refuse.

    Raises:
        ConfigError: Says which, and what is allowed.
        OSError: A file cannot be read.
    """
    keys = load_keys(settings.api_key_file, api_key())
    check_exposure(settings, has_keys=len(keys) > 0)
    credentials_of(settings)
    tls_context(settings)
    check_tracing(settings.otlp_traces_endpoint)
    if settings.profile_dir is not None:
        Path(settings.profile_dir).expanduser().mkdir(parents=True, exist_ok=True)


def is_alive(engine: Engine) -> bool:
    """Answer from the engine's thread."""
    del engine
    return True


def options_of(settings: ServerSettings) -> list[tuple[str, int]]:
    """List the options of the gRPC core."""
    keepalive_ms = math.ceil(settings.keepalive_s * 1000)
    return [
        ("grpc.max_concurrent_streams", settings.max_num_requests + OTHER_RPCS),
        ("grpc.max_receive_message_length", settings.max_message_mib * 2**20),
        ("grpc.max_send_message_length", settings.max_message_mib * 2**20),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # Two servers must not share a port by accident.
        ("grpc.so_reuseport", 0),
    ]


def checks_of(max_model_len: int) -> dict[str, Callable[[bytes], None]]:
    """List the methods whose messages are looked at before they are parsed."""
    check = functools.partial(check_generate, max_model_len=max_model_len)
    return dict.fromkeys((f"/{INFERENCE}/Generate", f"/{INFERENCE}/GenerateStream"), check)


def credentials_of(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Load the server's certificate, and the authority of its clients'.

    Raises:
        ConfigError: What is in a file is not what it should be.
        OSError: A file cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    authority, key, cert = read_certificates(
        settings.tls_client_ca, settings.tls_key, settings.tls_cert
    )
    assert key is not None and cert is not None
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=authority, require_client_auth=authority is not None
    )
