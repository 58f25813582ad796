"""What every RPC passes: its caller is known, its message is valid, its error is told once."""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import grpc

from distkv_jax.errors import (
    DeadlineExceeded,
    DistKVError,
    NotAllowed,
    NotBuilt,
    QueueFull,
    RequestError,
)
from serve.errors import tell
from serve.keys import Caller, Keys, bearer

logger = logging.getLogger(__name__)

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
"""Methods for anybody who can connect: a probe has no key."""
ADMIN_SERVICE = "/distkv.v1.Control/"
MESSAGE_S, OPEN_MESSAGE_S = 60.0, 2.0
"""For a call's message to come, after its headers; the second where nobody knows who calls."""
MAX_OPEN_CALLS = 64
"""Calls of open methods at once: whoever can connect must not take the places of callers."""

CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
"""Who made the RPC that the current task serves."""
ARRIVAL: contextvars.ContextVar[float] = contextvars.ContextVar("arrival")
"""`time.monotonic()` when its message was there, before it was parsed."""

Behaviour = Callable[[Any, Any], Any]


class Gate(grpc.aio.ServerInterceptor):
    """Stands before every method there is: those of other packages, and unknown ones, too.

    Who may not pass is refused by the headers, before a message is waited for. A message is read
    and parsed behind the gate: gRPC itself would wait for it without end, and answer a broken one
    with UNKNOWN.
    """

    def __init__(
        self,
        keys: Keys,
        checks: Mapping[str, Callable[[bytes], None]] | None = None,
        *,
        on_refusal: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """Let in who has a key.

        Args:
            keys: Who may call.
            checks: By method, what looks at a message before it is parsed; raises a
                `RequestError` for one that must not be.
            on_refusal: Hears of who was not let in.
        """
        self._keys = keys
        self._checks = dict(checks or {})
        self._on_refusal = on_refusal
        self._num_open = 0

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Wrap a method's handler."""
        method: str = handler_call_details.method
        try:
            caller = self._admit(method, handler_call_details.invocation_metadata)
        except DistKVError as error:
            self._on_refusal(error)
            return self._refusing(error)
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._refusing(NotBuilt(f"there is no method {method}"))
        if handler.request_streaming:
            # Its messages are parsed as the behaviour reads them, so behind the gate as well.
            inner = handler.stream_stream or handler.stream_unary
            parse = None
        else:
            inner = handler.unary_unary or handler.unary_stream
            parse = handler.request_deserializer
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            self._guarded(method, caller, inner, parse),
            request_deserializer=handler.request_deserializer if parse is None else None,
            response_serializer=handler.response_serializer,
        )

    def _refusing(self, error: Exception) -> Any:
        """Make a handler that refuses without reading."""

        async def refuse(messages: Any, context: Any) -> None:
            del messages, context
            raise error

        return grpc.stream_stream_rpc_method_handler(self._telling(refuse))

    def _guarded(
        self, method: str, caller: Caller, inner: Behaviour, parse: Callable[[bytes], Any] | None
    ) -> Behaviour:
        check = self._checks.get(method)

        async def behaviour(messages: AsyncIterator[Any], context: Any) -> Any:
            CALLER.set(caller)
            message: Any = messages
            if parse is not None:
                with self._counted(method):
                    raw = await message_of(messages, method)
                ARRIVAL.set(time.monotonic())
                if check is not None:
                    check(raw)
                message = parse(raw)
            if not inspect.isasyncgenfunction(inner):
                return await inner(message, context)
            # A generator cut off while gRPC writes would clean up only when it is collected.
            async with contextlib.aclosing(inner(message, context)) as replies:
                async for reply in replies:
                    await context.write(reply)

        return self._telling(behaviour)

    @contextlib.contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        """Count calls of open methods.

        Raises:
            QueueFull: There are too many.
        """
        if method not in OPEN_METHODS:
            yield
            return
        if self._num_open >= MAX_OPEN_CALLS:
            raise QueueFull(f"{self._num_open} calls without a key, limit {MAX_OPEN_CALLS}")
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def _telling(self, behaviour: Behaviour) -> Behaviour:
        async def told(request: Any, context: Any) -> Any:
            try:
                try:
                    return await behaviour(request, context)
                except (grpc.aio.AbortError, grpc.aio.InternalError):
                    raise
                except Exception as error:
                    row, text, metadata = tell(error)
                    await context.abort(row.code, text, metadata)
            except grpc.aio.InternalError as error:
                # Nothing can be written: the caller has gone, and news of it is on its way.
                raise asyncio.CancelledError from error

        return told

    def _admit(self, method: str, metadata: Any) -> Caller:
        """Find out who calls.

        Raises:
            Unauthenticated: Nobody the server knows.
            NotAllowed: Somebody who may not call this method.
        """
        if method in OPEN_METHODS:
            return Caller("", is_admin=False)
        value = dict(metadata or ()).get("authorization")
        caller = self._keys.caller_of(bearer(value if isinstance(value, str) else None))
        if method.startswith(ADMIN_SERVICE) and not caller.is_admin:
            raise NotAllowed(f"the API key of {caller.name} is not an admin's")
        return caller


async def message_of(messages: AsyncIterator[bytes], method: str) -> bytes:
    """Wait for the one message of a call.

    Raises:
        DeadlineExceeded: It does not come.
        RequestError: The caller ended without one.
    """
    patience_s = OPEN_MESSAGE_S if method in OPEN_METHODS else MESSAGE_S
    try:
        async with asyncio.timeout(patience_s):
            return await anext(messages)
    except TimeoutError:
        raise DeadlineExceeded(f"no message came within {patience_s:g} s") from None
    except StopAsyncIteration:
        raise RequestError("the call has no message, must have one") from None
