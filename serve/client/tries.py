"""What a stream does when its call fails: give up, send again, or attach where it broke off."""

import random
import secrets
import time
from collections.abc import Sequence
from typing import Any

import grpc

from distkv_jax.engine.outputs import RequestOutput
from serve.client.connection import Connection
from serve.client.retries import Retries
from serve.errors import Heard
from serve.proto.distkv.v1 import inference_pb2

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 2.0

Code = grpc.StatusCode


class Tries:
    """Makes the calls of one stream, one after the other, until one comes to its end.

    A request that is not durable is only sent again before it gave anything. A durable one is
    attached to when its connection or its server went away, whether or not it gave something:
    sending it again would be refused if it was accepted, and attaching if it was not, which is how
    this finds out.
    """

    def __init__(
        self,
        connection: Connection,
        message: inference_pb2.GenerateRequest | inference_pb2.AttachRequest,
        output: RequestOutput,
        timeout_s: float | None,
    ) -> None:
        """Be ready for the first call.

        Args:
            connection: Where to.
            message: What to ask; a durable request without a name gets one.
            output: What came so far, kept up to date by whoever reads.
            timeout_s: Seconds for all calls; None takes the settings' time.
        """
        self._connection = connection
        self._message = message
        self._output = output
        self._retries: Retries = connection.retries(timeout_s)
        self._has_begun = False
        self._was_lost = False
        self._until: float | None = None
        self._wait_s = FIRST_WAIT_S
        self._offsets: Sequence[int] = ()
        self._attaches = isinstance(message, inference_pb2.AttachRequest)
        self._is_durable = True
        if isinstance(message, inference_pb2.GenerateRequest):
            self._is_durable = message.durable
            if message.durable and not message.request_id:
                message.request_id = f"gen-{secrets.token_hex(8)}"
        else:
            self._offsets = tuple(message.offsets)

    def call(self) -> Any:
        """Make the next call.

        Raises:
            DeadlineExceeded: No time is left.
        """
        inference, message = self._connection.inference, self._message
        named = {"timeout": self._retries.time_left(), "metadata": self._connection.metadata}
        if not self._attaches:
            return inference.GenerateStream(message, **named)
        again = inference_pb2.AttachRequest(
            request_id=message.request_id,
            offsets=self._next_offsets(),
            return_prompt_token_ids=message.return_prompt_token_ids and not self._has_begun,
        )
        return inference.Attach(again, **named)

    def heard_something(self) -> None:
        """Remember that the call gave something."""
        self._has_begun = True
        self._until, self._wait_s = None, FIRST_WAIT_S

    def wait_before_next(self, heard: Heard) -> float:
        """Tell how many seconds to wait before the next call.

        Args:
            heard: How the last one failed.

        Raises:
            DistKVError: That failure, where it is final or there is no time left.
        """
        if not self._is_durable or not self._goes_on(heard.code):
            return self._retries.wait_before_next(heard, has_begun=self._has_begun)
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._connection.settings.reattach_s
        wait_s = random.uniform(self._wait_s / 2, self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        if now + wait_s >= self._until:
            raise heard.error
        return wait_s

    def _goes_on(self, code: Code) -> bool:
        """Decide what the next call is; whether there is one."""
        is_own = isinstance(self._message, inference_pb2.GenerateRequest)
        if code is Code.UNAVAILABLE:
            self._attaches = self._was_lost = True
        elif code is Code.NOT_FOUND and is_own and self._attaches and not self._has_begun:
            self._attaches = False
        elif code is Code.ALREADY_EXISTS and self._was_lost and not self._attaches:
            self._attaches = True
        else:
            return False
        return True

    def _next_offsets(self) -> list[int]:
        """Count what there is: where the first call began, and what came since."""
        counts = [len(sample.token_ids) for sample in self._output.outputs]
        first = list(self._offsets)
        longest = max(len(counts), len(first))
        counts += [0] * (longest - len(counts))
        first += [0] * (longest - len(first))
        return [one + other for one, other in zip(counts, first, strict=True)]
