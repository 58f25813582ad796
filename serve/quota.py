"""How much each caller has under way, and the most it may have."""

import collections
import contextlib
from collections.abc import Iterator

from distkv_jax.errors import QueueFull, QuotaExceeded
from serve.keys import Caller


class Quota:
    """Counts requests under way, and prompt tokens that wait for a first token, by caller.

    The event loop owns it.

    Invariant: callers without a request have no entry.
    """

    def __init__(
        self, *, max_requests: int, caller_requests: int | None, caller_tokens: int | None
    ) -> None:
        """Start with nothing under way.

        Args:
            max_requests: Requests of all callers together.
            caller_requests: Requests of one; None for any number.
            caller_tokens: Waiting tokens of one; None for any number.
        """
        self._max_requests = max_requests
        self._caller_requests = caller_requests
        self._caller_tokens = caller_tokens
        self._requests: collections.Counter[str] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()
        self._readings: collections.Counter[str] = collections.Counter()

    @property
    def num_requests(self) -> int:
        """Requests under way."""
        return self._requests.total()

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of requests without a first token."""
        return self._tokens.total()

    @contextlib.contextmanager
    def reading(self, caller: Caller) -> Iterator[None]:
        """Keep a place for a call while its body comes in, as if it were under way.

        Raises:
            QueueFull: The server has as many as it takes.
            QuotaExceeded: The caller has.
        """
        self._check(
            self.num_requests + self._readings.total(),
            self._requests[caller.name] + self._readings[caller.name],
        )
        self._readings[caller.name] += 1
        try:
            yield
        finally:
            _subtract(self._readings, caller.name, 1)

    def begin(self, caller: Caller, *, is_resumed: bool = False) -> None:
        """Count a request in, before anything is done for it; calls being read do not count.

        Args:
            caller: Whose.
            is_resumed: It was accepted by a server before this one: no limit refuses it.

        Raises:
            QueueFull: The server has as many as it takes.
            QuotaExceeded: The caller has.
        """
        if not is_resumed:
            self._check(self.num_requests, self._requests[caller.name])
        self._requests[caller.name] += 1

    def _check(self, count: int, mine: int) -> None:
        if count >= self._max_requests:
            raise QueueFull(f"{count} requests under way, limit {self._max_requests}")
        limit = self._caller_requests
        if limit is not None and mine >= limit:
            raise QuotaExceeded(f"{mine} requests of yours under way, limit {limit}")

    def end(self, caller: Caller) -> None:
        """Count a request out."""
        _subtract(self._requests, caller.name, 1)

    def wait(self, caller: Caller, num_tokens: int, *, is_resumed: bool = False) -> None:
        """Count a prompt in.

        Args:
            caller: Whose.
            num_tokens: It has.
            is_resumed: As for `begin`.

        Raises:
            QuotaExceeded: Too many tokens of the caller wait already.
        """
        waiting, limit = self._tokens[caller.name], self._caller_tokens
        if limit is not None and not is_resumed and waiting and waiting + num_tokens > limit:
            raise QuotaExceeded(
                f"{num_tokens} prompt tokens behind {waiting} of yours waiting, limit {limit}"
            )
        self._tokens[caller.name] += num_tokens

    def stop_waiting(self, caller: Caller, num_tokens: int) -> None:
        """Count a prompt out."""
        _subtract(self._tokens, caller.name, num_tokens)


def _subtract(counter: collections.Counter[str], name: str, count: int) -> None:
    counter[name] -= count
    assert counter[name] >= 0, name
    if not counter[name]:
        del counter[name]
