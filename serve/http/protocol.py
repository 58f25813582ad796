"""uvicorn's HTTP/1.1 with what it lacks: a time for headers, our errors, eyes for who leaves."""

import asyncio
import email.utils
import json
import math

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.errors import INVALID
from serve.http.failure import body_of

HEAD_S = 10.0
"""For the headers of a request, from the connection's start or the request's first byte."""
REST_S = 10.0
"""For the rest of a body whose request was answered before all of it came."""
STALL_S = 30.0
"""A client that takes not a byte for so long, or up to twice as long, is cut off."""
NO_HTTP = "the request is not valid HTTP/1.1, or its headers are too large"
MAX_AHEAD_BYTES = 65_536
"""Of later requests that are read while one is answered: who reads nothing sees nobody leave."""


class Protocol(H11Protocol):
    """One connection.

    Its requests find in their scope's state `abort`, because closing waits until what was written
    is read; `flushed`, which waits until all that was written is out of this process; and the
    event `lost`.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    idle_since = 0.0
    """Time of the loop at the last answer's end, or at the connection's begin."""

    def connection_made(  # pyright: ignore[reportIncompatibleMethodOverride] (as its base's)
        self, transport: asyncio.Transport
    ) -> None:
        """Begin, with the time for the first headers running."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        # A write waits until the one before has left this process; and so does `flushed`.
        transport.set_write_buffer_limits(high=1, low=0)
        self._lost = asyncio.Event()
        self.app_state = {
            **self.app_state,
            "abort": transport.abort,
            "flushed": self.flow.drain,
            "lost": self._lost,
        }
        self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    @property
    def is_idle(self) -> bool:
        """Whether it has no request to answer."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take bytes in; the time runs while headers are incomplete."""
        super().data_received(data)
        if not self._is_rest_due():
            self._rest_timer = stopped(self._rest_timer)
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) < MAX_AHEAD_BYTES:
            self.flow.resume_reading()
        if self.conn.their_state is not h11.IDLE:
            self._head_timer = stopped(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; once an answer has begun it can only be cut off."""
        del msg
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        text = json.dumps(body_of(NO_HTTP, INVALID, "bad_request", None)).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(text)),
            "date": email.utils.formatdate(usegmt=True),
            "connection": "close",
        }
        response = h11.Response(status_code=400, reason=b"Bad Request", headers=[*headers.items()])
        for event in (response, h11.Data(data=text), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        """Go on to the next request; what is left of this one's body has its time to come.

        It is read to its end: a client that is cut off while it sends may never see its answer.
        """
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self._is_rest_due():
            self._rest_timer = self.loop.call_later(REST_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Hold writes back, and see whether the client takes anything meanwhile."""
        super().pause_writing()
        self._look_at_writing(math.inf)

    def resume_writing(self) -> None:
        """Let writes go on."""
        super().resume_writing()
        self._stall_timer = stopped(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._head_timer = stopped(self._head_timer)
        self._rest_timer = stopped(self._rest_timer)
        super().connection_lost(exc)
        self._stall_timer = stopped(self._stall_timer)
        self._lost.set()

    def _is_rest_due(self) -> bool:
        """Whether a request was answered of which not all has come."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _look_at_writing(self, num_before: float) -> None:
        """Cut a client off that took nothing since the last look."""
        num_left = self.transport.get_write_buffer_size()
        if num_left >= num_before:
            self.transport.abort()
            return
        self._stall_timer = self.loop.call_later(STALL_S, self._look_at_writing, num_left)

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


def stopped(timer: asyncio.TimerHandle | None) -> None:
    """Stop a timer, if there is one."""
    if timer is not None:
        timer.cancel()
