"""What every HTTP request passes: it has a name, its caller is let in, its error is told once."""

import email.utils
import logging
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distkv_jax.errors import Unavailable
from serve.http.body import ClientGone
from serve.http.calls import is_request_id
from serve.http.events import until_gone
from serve.http.failure import failure_response
from serve.http.routes import HEALTH

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"


class App:
    """The outermost ASGI app of the door."""

    def __init__(
        self, inner: ASGIApp, is_draining: Callable[[], bool], refusal: Callable[[], str | None]
    ) -> None:
        """Wrap the door's routes.

        Args:
            inner: May raise what `serve.errors` has a row for, or anything else.
            is_draining: Whether clients should connect elsewhere next time.
            refusal: Says why no request at all is taken; None where they are.
        """
        self._inner = inner
        self._is_draining = is_draining
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        state = scope["state"]
        state["request_id"] = given if is_request_id(given) else f"req-{secrets.token_hex(8)}"
        has_begun = False
        # A probe must not take strangers' connections for an ill server.
        refusal = None if scope["path"] == HEALTH else self._refusal()

        async def send_named(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = [
                    *message.get("headers", ()),
                    (b"date", email.utils.formatdate(usegmt=True).encode()),
                    (REQUEST_ID_HEADER.encode(), state["request_id"].encode()),
                ]
                has_close = (b"connection", b"close") in headers
                if (refusal or self._is_draining()) and not has_close:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            if refusal:
                raise Unavailable(refusal)
            # Whatever it waits for: no route goes on for a client that is gone.
            await until_gone(self._inner(scope, receive, send_named), state["lost"])
        except ClientGone:
            return
        except Exception as error:
            if not has_begun:
                await failure_response(error)(scope, receive, send_named)
                return
            # Half an answer must not look like a whole one.
            logger.error("an answer broke off", exc_info=error)
            state["abort"]()
