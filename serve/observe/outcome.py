"""How a request ended, in one word that dashboards, logs and traces share."""

import time

import grpc
from starlette.requests import ClientDisconnect

from serve.errors import TABLE, Code, row_of
from serve.http.body import ClientGone
from serve.observe.record import Record

REASONS = ("stop", "length")
"""Ends as they should be."""
CODES = tuple(sorted({row.code.name for row in TABLE.values()}))
"""The other ends, by the names of gRPC's codes whichever door it was."""
DEADLINE_SLACK_S = 0.05
"""gRPC's timer may ring so much before ours, and then says only that the call is over."""
HAS_LEFT = (grpc.aio.InternalError, ClientGone, ClientDisconnect)
"""Raised by a write or a read when nobody is there any more."""


def code_of(record: Record) -> Code | None:
    """Tell with which code a request ended; None where it ended as it should."""
    error = record.error
    if error is None:
        return None
    if isinstance(error, Exception) and not isinstance(error, HAS_LEFT):
        return row_of(error).code
    # A task that was cancelled: its caller has left, or gRPC's timer has rung.
    end = time.monotonic() if record.end is None else record.end
    if record.deadline is not None and end >= record.deadline - DEADLINE_SLACK_S:
        return Code.DEADLINE_EXCEEDED
    return Code.CANCELLED


def outcome_of(record: Record) -> str:
    """Name how a request ended: one of `REASONS`, or one of `CODES`.

    Of several samples `length` counts before `stop`: it says that something was cut off.
    """
    code = code_of(record)
    if code is not None:
        return code.name
    return "length" if "length" in record.finish_reasons else "stop"
