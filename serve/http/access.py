"""Who may ask for which path: every route says so, and what no route has is closed."""

import enum
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from distkv_jax.errors import DistKVError, NotAllowed, Unauthenticated
from serve.http.failure import HttpError
from serve.keys import Caller, Keys, bearer

Endpoint = Callable[[Request], Awaitable[ASGIApp]]
"""Answers with a `Response`, or with another ASGI app that does."""

SAFE_METHODS = frozenset({"GET", "HEAD"})


class Access(enum.Enum):
    """Who may use a route."""

    OPEN = "whoever can connect"
    CALLER = "whoever has a key"
    ADMIN = "who has an admin's key"


class GuardedRoute(Route):
    """A route that says who may use it; made by `guarded_route`.

    Attributes:
        access: Who.
    """

    access: Access


def guarded_route(
    path: str, endpoint: Endpoint, *, methods: Collection[str], access: Access
) -> GuardedRoute:
    """Make a route of the door.

    Args:
        path: As Starlette writes it, such as `/v1/models/{name}`.
        endpoint: Answers; `caller_of` tells it who asks, and what it raises is told by the table
            of `serve.errors`.
        methods: Such as `["GET"]`; HEAD is one of its own: an answer may have no end.
        access: Who may.
    """
    route = GuardedRoute(path, endpoint, methods=methods)
    route.methods = set(methods)
    route.access = access
    return route


def caller_of(request: Request) -> Caller:
    """Tell who asks; on an open route that is nobody."""
    return request.state.caller


class Guard:
    """An ASGI app that lets a request through to its route, or raises why not.

    Without keys whoever reaches the loopback address is let in, and a web page of any origin can
    have its reader's browser do that. Two checks keep pages out: a `Host` that is not this
    machine's own name means that a foreign name was pointed here, and a browser sends JSON to
    another origin only if that origin allows it, which this server never does.
    """

    def __init__(
        self,
        routes: Sequence[GuardedRoute],
        keys: Keys,
        *,
        checks_host: bool,
        on_refusal: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """Guard routes.

        Args:
            routes: All there are.
            keys: Who may call.
            checks_host: Refuse requests to other names than this machine's own.
            on_refusal: Hears of who was not let in.
        """
        self._routes = tuple(routes)
        self._keys = keys
        self._checks_host = checks_host
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            Unauthenticated: Nobody the server knows, on a path that is not open or not there.
            NotAllowed: Somebody who may not use this route.
            HttpError: A foreign host name, another content type than JSON, no such path or method.
        """
        headers = Headers(scope=scope)
        if self._checks_host:
            check_host(headers.get("host"))
        route, match, child_scope = self._find(scope)
        access = Access.CALLER if route is None else route.access
        try:
            caller = self._admit(headers, access)
        except DistKVError as error:
            self._on_refusal(error)
            raise
        scope.setdefault("state", {})["caller"] = caller
        if route is None:
            raise HttpError(404, f"there is no path {scope['path']!r}", code="not_found")
        if match is Match.PARTIAL:
            allowed = ", ".join(sorted(route.methods or ()))
            raise HttpError(
                405,
                f"{scope['path']} has no method {scope['method']}, it has {allowed}",
                code="method_not_allowed",
                headers={"allow": allowed},
            )
        if scope["method"] not in SAFE_METHODS:
            check_content_type(headers.get("content-type"))
        scope.update(child_scope)
        await route.handle(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[GuardedRoute | None, Match, dict[str, Any]]:
        """Find the route of a path, before one that has the path but not the method."""
        partial = None
        for route in self._routes:
            match, child_scope = route.matches(scope)
            if match is Match.FULL:
                return route, match, dict(child_scope)
            if match is Match.PARTIAL and partial is None:
                partial = route
        return partial, Match.NONE if partial is None else Match.PARTIAL, {}

    def _admit(self, headers: Headers, access: Access) -> Caller:
        if access is Access.OPEN:
            return Caller("", is_admin=False)
        key = bearer(headers.get("authorization"))
        if key is None and len(self._keys):
            raise Unauthenticated("no API key, expected a header authorization: Bearer KEY")
        caller = self._keys.caller_of(key)
        if access is Access.ADMIN and not caller.is_admin:
            raise NotAllowed(f"the API key of {caller.name} is not an admin's")
        return caller


def check_host(host: str | None) -> None:
    """Refuse a request that was not sent to this machine by one of its own names.

    Raises:
        HttpError: It names another host, or none.
    """
    name = (host or "").strip()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name.lower() == "localhost":
        return
    try:
        is_local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise HttpError(
            421,
            f"host={host!r} is not this machine's own, must be localhost or a loopback address",
            code="misdirected_request",
        )


def check_content_type(content_type: str | None) -> None:
    """Refuse other bodies than JSON.

    Raises:
        HttpError: The content type is another one, or none was given.
    """
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(
            415,
            f"content-type={content_type!r} must be application/json",
            code="unsupported_media_type",
        )
