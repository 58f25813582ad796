"""The second port: HTTP beside gRPC, in the same event loop and with the same requests."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Sequence

import uvicorn
from uvicorn.server import ServerState

from distkv_jax.errors import ConfigError
from serve.dispatch import Dispatcher
from serve.http.access import Guard, GuardedRoute
from serve.http.app import App
from serve.http.protocol import Protocol
from serve.http.routes import OpenAIRoutes
from serve.http.tls import tls_context
from serve.keys import Keys
from serve.settings import ServerSettings

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
OTHER_CONNECTIONS = 1024
"""Connections at once besides requests under way: idle ones, and those of metrics and pages."""
HANDSHAKE_S = 10.0
TASKS_S = 1.0
"""For what serves a client that is gone to end, and once more when it is cancelled."""
LOOK_S = 0.01
"""Between two looks at whether all connections have ended."""


class HttpDoor:
    """Listens for HTTP and answers until it is stopped; the event loop owns it.

    uvicorn's protocol reads and writes; the rest of uvicorn, with signals and logs of its own, is
    not used.

    Attributes:
        port: TCP port, once bound.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        keys: Keys,
        settings: ServerSettings,
        model_name: str,
        routes: Sequence[GuardedRoute] = (),
        *,
        is_answering: Callable[[], bool] = lambda: True,
        on_refusal: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """Make the parts; nothing listens yet.

        Args:
            dispatcher: Where requests go.
            keys: Who may call.
            settings: How to listen; `http_port` is set.
            model_name: As the server calls its model.
            routes: Those of other parts.
            is_answering: Whether the engine does; health is told by it.
            on_refusal: Hears of who was not let in.

        Raises:
            ConfigError: A certificate cannot be.
            OSError: A file cannot be read.
        """
        self.port = 0
        self._settings = settings
        has_keys = len(keys) > 0
        own = OpenAIRoutes(
            dispatcher, settings, model_name, has_keys=has_keys, is_answering=is_answering
        ).routes()
        checks_host = settings.is_local and not has_keys
        guard = Guard([*own, *routes], keys, checks_host=checks_host, on_refusal=on_refusal)
        self._tls = tls_context(settings)
        self._config = uvicorn.Config(
            App(guard, lambda: dispatcher.is_draining, self._refusal),
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.keepalive_s),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self._config.load()
        self._state = ServerState()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    def bind(self) -> None:
        """Take the port, and nothing that comes to it.

        Raises:
            ConfigError: It cannot be had.
        """
        host, port = self._settings.host.strip("[]"), self._settings.http_port or 0
        try:
            self._socket = bound(host, port, keepalive_s=math.ceil(self._settings.keepalive_s))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} for HTTP: {error}") from error
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Take connections; binds if that was not done.

        Raises:
            ConfigError: The port cannot be had.
        """
        if self._socket is None:
            self.bind()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Protocol(config=self._config, server_state=self._state, app_state={}),
            sock=self._socket,
            ssl=self._tls,
            ssl_handshake_timeout=HANDSHAKE_S if self._tls is not None else None,
            backlog=self._config.backlog,
        )

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let answers be read for `grace_s`, then cut what is left."""
        if self._server is None:
            if self._socket is not None:
                self._socket.close()
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._state.connections or self._state.tasks:
                    await asyncio.sleep(LOOK_S)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await self._end_tasks()
        await self._server.wait_closed()

    async def _end_tasks(self) -> None:
        """Wait for what serves clients that are gone; it ends by itself, or is cancelled."""
        for _ in range(2):
            if left := set(self._state.tasks):
                _, left = await asyncio.wait(left, timeout=TASKS_S)
            for task in left:
                task.cancel()
        if self._state.tasks:
            logger.error("%d HTTP requests did not end", len(self._state.tasks))

    def _refusal(self) -> str | None:
        """Say that there are more connections than all requests at once need; None if not.

        One without a request makes room, the one that is idle for longest: anybody can open it.
        """
        limit = self._settings.max_num_requests + OTHER_CONNECTIONS
        count = len(self._state.connections)
        if count <= limit:
            return None
        connections = (one for one in self._state.connections if isinstance(one, Protocol))
        idle = [one for one in connections if one.is_idle and not one.transport.is_closing()]
        if not idle:
            return f"{count} connections, limit {limit}"
        min(idle, key=lambda one: one.idle_since).shutdown()
        return None


def bound(host: str, port: int, *, keepalive_s: int) -> socket.socket:
    """Bind a socket whose connections notice that the other machine has vanished.

    Raises:
        OSError: The address cannot be had.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # As with gRPC, "localhost" is 127.0.0.1 to a client that knows no IPv6.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    is_dual = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    # The address without flow and scope, which only link-local ones have.
    bound = socket.create_server(address[:2], family=family, dualstack_ipv6=is_dual)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", keepalive_s), ("TCP_KEEPINTVL", keepalive_s)):
            # Connections have the options of their listener; macOS names one of them differently.
            if hasattr(socket, name):
                bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
