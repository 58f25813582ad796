"""The live page and the stream of views it draws."""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from distkv_jax.errors import DistKVError
from serve.errors import FieldError
from serve.http.access import SAFE_METHODS, Access, Endpoint, GuardedRoute, guarded_route
from serve.live.json_form import json_of
from serve.live.watch import DEFAULT_INTERVAL_S, View, Watch

# Written out: nothing else of the folder can be asked for.
FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/live.js": ("live.js", "text/javascript"),
    "/page/stream.js": ("stream.js", "text/javascript"),
    "/page/pools.js": ("pools.js", "text/javascript"),
    "/page/charts.js": ("charts.js", "text/javascript"),
    "/page/requests.js": ("requests.js", "text/javascript"),
    "/page/dom.js": ("dom.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
STREAM_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    # A proxy that buffers would show nothing until its buffer is full.
    "x-accel-buffering": "no",
}
WRITE_S = 30.0
"""For a view to be taken: who reads no more must not keep a watcher's place."""


def live_routes(watch: Watch) -> list[GuardedRoute]:
    """Make the routes: the page is open and holds no data, its data is an admin's."""

    async def live(request: Request) -> Response:
        views = watch.views(interval_of(request))
        # What is wrong with the call must be known before the answer begins.
        first = await anext(views)
        return StreamingResponse(
            events(first, views, request.state.abort),
            media_type="text/event-stream",
            headers=STREAM_HEADERS,
        )

    return [
        *(
            guarded_route(path, sender(name, kind), methods=SAFE_METHODS, access=Access.OPEN)
            for path, (name, kind) in FILES.items()
        ),
        guarded_route("/live", live, methods=["GET"], access=Access.ADMIN),
    ]


def sender(name: str, kind: str) -> Endpoint:
    """Make the endpoint that sends a file of the page."""
    body = resources.files("serve.live").joinpath("page", name).read_bytes()

    async def send(request: Request) -> Response:
        del request
        return Response(body, media_type=kind, headers=HEADERS)

    return send


async def events(
    first: View, views: AsyncGenerator[View, None], abort: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """Write views as server-sent events, until the reader leaves or the server stops.

    Args:
        first: The first one.
        views: Those after it.
        abort: Cuts the connection; called when a view is not taken in time.
    """
    loop = asyncio.get_running_loop()

    @contextlib.contextmanager
    def bounded() -> Iterator[None]:
        timer = loop.call_later(WRITE_S, abort)
        try:
            yield
        finally:
            timer.cancel()

    async with contextlib.aclosing(views):
        with bounded():
            yield f"data: {json_of(first)}\n\n"
        with contextlib.suppress(DistKVError):
            async for view in views:
                with bounded():
                    yield f"data: {json_of(view)}\n\n"


def interval_of(request: Request) -> float:
    """Read how many seconds are between two views.

    Raises:
        FieldError: It is not a number; whether it is allowed is checked with the first view.
    """
    text = request.query_params.get("interval")
    if text is None:
        return DEFAULT_INTERVAL_S
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise FieldError(f"interval={text!r} must be a number of seconds", "interval")
    return value
