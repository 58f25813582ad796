"""What every RPC passes: its caller is known, its message is valid, its error is told once."""

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from distkv_jax.errors import NotAllowed
from serve.errors import tell
from serve.keys import Caller, Keys, bearer

logger = logging.getLogger(__name__)

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
"""Methods for anybody who can connect: a probe has no key."""
ADMIN_SERVICE = "/distkv.v1.Control/"

CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
"""Who made the RPC that the current task serves."""

Behaviour = Callable[[Any, Any], Any]


class Gate(grpc.aio.ServerInterceptor):
    """Stands before every method there is: those of other packages, and unknown ones, too.

    A message is parsed behind the gate: gRPC itself would answer a broken one with UNKNOWN.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Wrap a method's handler."""
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._unknown(method)
        if handler.request_streaming:
            # Its messages are parsed as the behaviour reads them, so behind the gate as well.
            inner = handler.stream_stream or handler.stream_unary
            parse = None
        else:
            inner = handler.unary_unary or handler.unary_stream
            parse = handler.request_deserializer
        behaviour = self._guarded(method, inner, parse)
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            behaviour,
            request_deserializer=handler.request_deserializer if parse is None else None,
            response_serializer=handler.response_serializer,
        )

    def _unknown(self, method: str) -> Any:
        async def refuse(request: bytes, context: Any) -> None:
            del request
            self._admit(method, context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {method}")

        return grpc.unary_unary_rpc_method_handler(self._telling(refuse))

    def _guarded(
        self, method: str, inner: Behaviour, parse: Callable[[bytes], Any] | None
    ) -> Behaviour:
        async def behaviour(request: Any, context: Any) -> Any:
            CALLER.set(self._admit(method, context))
            message = request if parse is None else parse(request)
            if not inspect.isasyncgenfunction(inner):
                return await inner(message, context)
            # A generator cut off while gRPC writes would clean up only when it is collected.
            async with contextlib.aclosing(inner(message, context)) as replies:
                async for reply in replies:
                    await context.write(reply)

        return self._telling(behaviour)

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

    def _admit(self, method: str, context: Any) -> Caller:
        """Find out who calls.

        Raises:
            Unauthenticated: Nobody the server knows.
            NotAllowed: Somebody who may not call this method.
        """
        if method in OPEN_METHODS:
            return Caller("", is_admin=False)
        headers = dict(context.invocation_metadata() or ())
        value = headers.get("authorization")
        caller = self._keys.caller_of(bearer(value if isinstance(value, str) else None))
        if method.startswith(ADMIN_SERVICE) and not caller.is_admin:
            raise NotAllowed(f"the API key of {caller.name} is not an admin's")
        return caller
