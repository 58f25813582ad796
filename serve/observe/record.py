"""What happened to one request, and who is told of it as it happens."""

import dataclasses
import time
from collections.abc import Mapping

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.sampling_params import SamplingParams


@dataclasses.dataclass(kw_only=True, slots=True)
class Record:
    """One request from its arrival to its end, refused ones too. Times are `time.monotonic()`.

    Tokens carry the time at which the engine gave them, not that at which a client read them.

    Attributes:
        request_id: As its caller named it, or as it was named.
        caller: Name behind the API key; empty where the server has no keys.
        operation: What was called, such as `grpc.GenerateStream` or `http.chat_completions`.
        params: How it is sampled; None where it could not be read.
        carrier: Headers by which a trace goes on, such as `traceparent`.
        deadline: By when its caller wants it; None for no hurry.
        arrival: It came, before anything of it was read.
        arrival_ns: The same in nanoseconds since 1970, for traces and logs.
        num_prompt_tokens: 0 until it was tokenised.
        num_tokens: Given so far, by all samples.
        num_cached_tokens: Prompt tokens whose KV was there already.
        remote_kv_tokens: Most KV tokens it had away from home at once.
        instances_used: Instances that computed or held its tokens.
        scheduled: It was first given a slot; None if it never was.
        first_token: Its first token came; None if none did.
        end: Its last sample ended, else the time it was given up.
        finish_reasons: Of the samples that ended, in that order.
        error: Why it ended before its time; None where every sample ended as it should.
    """

    request_id: str
    caller: str
    operation: str
    params: SamplingParams | None
    carrier: Mapping[str, str]
    deadline: float | None = None
    arrival: float = dataclasses.field(default_factory=time.monotonic)
    arrival_ns: int = dataclasses.field(init=False)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_cached_tokens: int = 0
    remote_kv_tokens: int = 0
    instances_used: set[int] = dataclasses.field(default_factory=set)
    scheduled: float | None = None
    first_token: float | None = None
    end: float | None = None
    finish_reasons: list[str] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    _last: dict[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arrival_ns = time.time_ns() - int((time.monotonic() - self.arrival) * 1e9)

    def hear(self, update: Update, now: float) -> float | None:
        """Take in what a step gave.

        Returns:
            Seconds since the same sample's token before; None without one.
        """
        self.num_cached_tokens = max(self.num_cached_tokens, update.num_cached_tokens)
        self.remote_kv_tokens = max(self.remote_kv_tokens, update.remote_kv_tokens)
        self.instances_used.update(update.instances_used)
        if self.scheduled is None:
            self.scheduled = update.scheduled
        if update.finish_reason is not None:
            self.finish_reasons.append(update.finish_reason)
            if self.params is not None and len(self.finish_reasons) == self.params.n:
                self.end = now
        if not update.token_ids:
            return None
        self.num_tokens += len(update.token_ids)
        if self.first_token is None:
            self.first_token = now
        before, self._last[update.index] = self._last.get(update.index), now
        return None if before is None else now - before


class Observer:
    """Hears of every request on the event loop; each method does nothing unless overridden.

    Must be quick. What it raises is logged and reaches no request.
    """

    def on_begin(self, record: Record) -> None:
        """A request came; nothing of it is checked yet."""

    def on_first_token(self, record: Record) -> None:
        """The request has its first token."""

    def on_gap(self, record: Record, seconds: float) -> None:
        """A sample has a token more, so many seconds after the one before."""

    def on_end(self, record: Record) -> None:
        """The request is over, and its caller has been told all there is."""
