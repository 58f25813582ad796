"""One log line for each request at its end, with numbers and without a word of its text."""

import asyncio
import collections
import logging

from serve.errors import Code, field_of, reason_of
from serve.observe.outcome import code_of, outcome_of
from serve.observe.record import Observer, Record

logger = logging.getLogger("distkv.requests")

FIELDS = (
    "request_id",
    "caller",
    "operation",
    "outcome",
    "error",
    "field",
    "prompt_tokens",
    "generated_tokens",
    "cached_tokens",
    "remote_kv_tokens",
    "instances_used",
    "queue_s",
    "ttft_s",
    "e2e_s",
)
"""What a line has besides its message, in this order; those that do not apply are left out."""
MAX_EMPTY_PER_S = 10
"""Lines in a second about requests that gave no token; they cost their callers nothing."""
COUNT_S = 1.0
OUR_FAULT = frozenset({Code.INTERNAL, Code.ABORTED})


class RequestLog(Observer):
    """Logs every request that gave a token, and as many others as a disc can take.

    The event loop owns it.

    Texts of errors quote what was given, so a line has only the error's name and the field's.
    """

    def __init__(self) -> None:
        self._num_empty = 0
        self._timer: asyncio.TimerHandle | None = None
        self._left_out: collections.Counter[str] = collections.Counter()

    def on_end(self, record: Record) -> None:
        """Log it, or count it as left out."""
        if not record.num_tokens:
            self._num_empty += 1
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(COUNT_S, self._end_second)
            if self._num_empty > MAX_EMPTY_PER_S:
                self._left_out[outcome_of(record)] += 1
                return
        level = logging.WARNING if code_of(record) in OUR_FAULT else logging.INFO
        logger.log(level, "request ended", extra=fields_of(record))

    def close(self) -> None:
        """Tell of those that were left out, and begin anew."""
        if self._timer is not None:
            self._timer.cancel()
        self._end_second()

    def _end_second(self) -> None:
        self._timer, self._num_empty = None, 0
        for outcome, count in self._left_out.items():
            logger.info(
                "requests without a token were left out of the log",
                extra={"outcome": outcome, "count": count},
            )
        self._left_out.clear()


def fields_of(record: Record) -> dict[str, object]:
    """List what is logged of a request."""
    error = record.error
    kind = None if error is None else type(error)
    found: dict[str, object] = {
        "request_id": record.request_id,
        "caller": record.caller or None,
        "operation": record.operation,
        "outcome": outcome_of(record),
        "error": kind and (reason_of(kind) if issubclass(kind, Exception) else "") or None,
        "field": field_of(error) if isinstance(error, Exception) else None,
        "prompt_tokens": record.num_prompt_tokens,
        "generated_tokens": record.num_tokens,
        "cached_tokens": record.num_cached_tokens,
        "remote_kv_tokens": record.remote_kv_tokens,
        "instances_used": sorted(record.instances_used),
        "queue_s": seconds_since(record, record.scheduled),
        "ttft_s": seconds_since(record, record.first_token),
        "e2e_s": seconds_since(record, record.end),
    }
    return {name: found[name] for name in FIELDS if found[name] is not None}


def seconds_since(record: Record, moment: float | None) -> float | None:
    """Tell how long after a request's arrival something happened."""
    return None if moment is None else round(moment - record.arrival, 6)
