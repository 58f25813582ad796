"""`GET /metrics`, for Prometheus."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from serve.dispatch import Dispatcher
from serve.http.access import SAFE_METHODS, Access, GuardedRoute, guarded_route
from serve.observe.metrics import Metrics


def metrics_routes(metrics: Metrics, dispatcher: Dispatcher) -> list[GuardedRoute]:
    """Make the routes; they are for admins, as everything that tells of all callers.

    Args:
        metrics: What is told.
        dispatcher: Tells `metrics` of requests.
    """

    async def scrape(request: Request) -> Response:
        reading = await metrics.read()
        # What the engine gave before it was read is counted too.
        dispatcher.catch_up()
        # Writing takes milliseconds.
        body, content_type = await asyncio.to_thread(
            metrics.encode, reading, request.headers.get("accept", "")
        )
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return [guarded_route("/metrics", scrape, methods=SAFE_METHODS, access=Access.ADMIN)]
