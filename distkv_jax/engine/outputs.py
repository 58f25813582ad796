"""What a request gives back, under vLLM's names."""

import dataclasses
from typing import NamedTuple

from distkv_jax.engine.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Logprob:
    """A token's log-probability at a position.

    Attributes:
        logprob: Natural log, of the raw logits.
        rank: 1 for the most likely token.
        decoded_token: Its text, where there is a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


PositionLogprobs = dict[int, Logprob]
"""Log-probabilities at one position by token id: the chosen one's and the most likely ones'."""


class Update(NamedTuple):
    """What one step added to one sequence of a request.

    Attributes:
        request: Whose.
        index: Which sample.
        token_ids: New tokens, none or one.
        text: New text.
        logprobs: One entry for each new token, where asked for.
        prompt_logprobs: Given once, with the request's first update that has them.
        finish_reason: Set in the sample's last update.
        stop_reason: The stop string or stop token id that ended it; None for an end token.
        error: What went wrong, with finish reason "error".
        instances_used: Instances that computed or held its tokens so far.
        remote_kv_tokens: Most KV tokens it had away from home at once.
        num_cached_tokens: Prompt tokens whose KV another sample had computed.
        scheduled: `time.monotonic()` when the sample first got a slot; None if it never did.
    """

    request: Request
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index: unused here)
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    instances_used: tuple[int, ...] = ()
    remote_kv_tokens: int = 0
    num_cached_tokens: int = 0
    scheduled: float | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class CompletionOutput:
    """One sample of a request.

    Attributes:
        index: Which sample.
        text: Its text so far, empty without detokenization.
        token_ids: Its tokens so far.
        cumulative_logprob: Sum of its tokens' log-probabilities, where asked for.
        logprobs: One entry for each token, where asked for.
        finish_reason: "stop", "length", "cancelled", "deadline" or "error"; None while it runs.
        stop_reason: The stop string or stop token id that ended it.
    """

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class RequestMetrics:
    """When things happened, in `time.monotonic()` seconds.

    Attributes:
        arrival_time: The request came.
        first_token_time: Its first token was read.
        finished_time: Its last sample ended.
    """

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class RequestOutput:
    """A request's results so far.

    Attributes:
        request_id: The request's name.
        prompt: Its text, if it came as text.
        prompt_token_ids: Its tokens.
        prompt_logprobs: One entry for each prompt token, None for the first; where asked for.
        outputs: One for each sample.
        finished: Whether all samples ended.
        metrics: When things happened.
        num_cached_tokens: Prompt tokens that a sample did not compute again.
        remote_kv_tokens: Most KV tokens it had away from home at once, over its samples.
        instances_used: Instances that computed or held its tokens.
        error: What went wrong, where a sample ended with "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[PositionLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    remote_kv_tokens: int = 0
    instances_used: tuple[int, ...] = ()
    error: str | None = None


def new_output(request: Request) -> RequestOutput:
    """The output of a request that has not begun."""
    wants_logprobs = request.params.logprobs is not None
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=list(request.prompt_token_ids),
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(
                index=index,
                cumulative_logprob=0.0 if wants_logprobs else None,
                logprobs=[] if wants_logprobs else None,
            )
            for index in range(request.params.n)
        ],
        finished=False,
        metrics=RequestMetrics(arrival_time=request.arrival),
    )


def snapshot(output: RequestOutput) -> RequestOutput:
    """Copy an output, so that later updates leave the copy alone."""
    return dataclasses.replace(
        output,
        outputs=[
            dataclasses.replace(
                sample,
                token_ids=list(sample.token_ids),
                logprobs=None if sample.logprobs is None else list(sample.logprobs),
            )
            for sample in output.outputs
        ],
        metrics=dataclasses.replace(output.metrics),
    )


def apply_update(output: RequestOutput, update: Update, now: float) -> None:
    """Add what a step gave to a request's output, in place."""
    sample = output.outputs[update.index]
    sample.text += update.text
    sample.token_ids.extend(update.token_ids)
    if sample.logprobs is not None and sample.cumulative_logprob is not None:
        sample.logprobs.extend(update.logprobs)
        sample.cumulative_logprob += sum(
            entry[token].logprob
            for token, entry in zip(update.token_ids, update.logprobs, strict=True)
        )
    if update.prompt_logprobs is not None:
        output.prompt_logprobs = list(update.prompt_logprobs)
    if update.token_ids and output.metrics.first_token_time is None:
        output.metrics.first_token_time = now
    if update.finish_reason is not None:
        sample.finish_reason = update.finish_reason
        sample.stop_reason = update.stop_reason
    output.error = update.error or output.error
    output.instances_used = tuple(sorted({*output.instances_used, *update.instances_used}))
    output.num_cached_tokens = max(output.num_cached_tokens, update.num_cached_tokens)
    output.remote_kv_tokens = max(output.remote_kv_tokens, update.remote_kv_tokens)
    if all(one.finish_reason is not None for one in output.outputs):
        output.finished = True
        output.metrics.finished_time = now
