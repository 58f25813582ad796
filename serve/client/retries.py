"""When a failed call is made again, and how long to wait before."""

import random
import time

import grpc

from distkv_jax.errors import DeadlineExceeded
from serve.errors import Heard

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0


class Retries:
    """Counts the tries of one call, and its time.

    Tried again is only what the server did not begin: UNAVAILABLE before any token, and
    RESOURCE_EXHAUSTED where the status says when. Waits double and are random within their upper
    half, so that clients refused together do not come back together.

    Source: "Exponential backoff and jitter", AWS Architecture Blog ("equal jitter").
    """

    def __init__(self, max_retries: int, timeout_s: float | None) -> None:
        """Start the clock.

        Args:
            max_retries: Tries after the first.
            timeout_s: Seconds for all of them; None for any time.
        """
        self._num_left = max_retries
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._wait_s = FIRST_WAIT_S

    def time_left(self) -> float | None:
        """Seconds that the next try has; None for any time.

        Raises:
            DeadlineExceeded: None are left.
        """
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be sent")
        return left

    def wait_before_next(self, heard: Heard, *, has_begun: bool) -> float:
        """Tell how many seconds to wait before the next try.

        Args:
            heard: How the last one failed.
            has_begun: Whether it gave anything.

        Raises:
            DistKVError: That failure, where it is final or there is no time left.
        """
        may_retry = not has_begun and (
            heard.code is grpc.StatusCode.UNAVAILABLE
            or (heard.code is grpc.StatusCode.RESOURCE_EXHAUSTED and heard.retry_s is not None)
        )
        if not may_retry or not self._num_left:
            raise heard.error
        self._num_left -= 1
        wait_s = max(self._wait_s, heard.retry_s or 0.0)
        wait_s = random.uniform(wait_s / 2, wait_s) if heard.retry_s is None else wait_s
        wait_s += random.uniform(0, self._wait_s / 2)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        if self._deadline is not None and time.monotonic() + wait_s >= self._deadline:
            raise heard.error
        return wait_s
