"""Which request the current task serves, so that every log line can say so."""

import contextlib
import contextvars
import logging
from collections.abc import Iterable, Iterator

REQUEST_ID: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""As its caller knows it; None outside of requests, as on the engine's thread."""
TRACE_HEADERS = ("traceparent", "tracestate")
"""By which a caller's trace goes on (W3C Trace Context)."""


@contextlib.contextmanager
def serving(request_id: str) -> Iterator[None]:
    """Name the request that the task serves, also in threads that it starts."""
    token = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(token)


def trace_headers(headers: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Pick the headers by which a caller's trace goes on; their names are in lower case."""
    return {
        name: value
        for name, value in headers or ()
        if name in TRACE_HEADERS and isinstance(value, str)
    }


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to log records that are made while a request is served."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Name the request; lets every record through."""
        request_id = REQUEST_ID.get()
        if request_id is not None and not hasattr(record, "request_id"):
            record.request_id = request_id
        return True
