"""Protobuf messages to our dataclasses and back; the only file that knows both."""

import contextlib
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from distkv_jax.engine.outputs import (
    CompletionOutput,
    Logprob,
    PositionLogprobs,
    RequestOutput,
    Update,
)
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from distkv_jax.errors import RequestError
from serve.errors import FieldError, naming
from serve.proto.distkv.v1 import inference_pb2 as pb

MAX_REQUEST_ID_CHARS = 128
PRINTABLE = frozenset(string.printable) - frozenset(string.whitespace)

NAMES = tuple(field.name for field in fields(SamplingParams))
LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")
MOST_ENTRIES = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "allowed_token_ids": MAX_ALLOWED_TOKEN_IDS,
    "bad_words": MAX_BAD_WORDS,
    "logit_bias": MAX_LOGIT_BIAS,
}
"""Counted before anything is copied out of a message."""
SCALARS = tuple(name for name in NAMES if name not in (*LISTS, "logit_bias"))
FIELD_PATHS = {name: f"sampling.{name}" for name in NAMES} | {
    "prompt": "prompt",
    # "bad word 'x' has 9 tokens, ..."
    "bad": "sampling.bad_words",
}
"""Where a field is in a message, by the first word of the errors about it."""
REASONS = {
    "stop": pb.FinishReason.FINISH_REASON_STOP,
    "length": pb.FinishReason.FINISH_REASON_LENGTH,
}
REASON_NAMES: dict[int, str] = {number: name for name, number in REASONS.items()}


def request_id_of(message: pb.GenerateRequest | pb.AbortRequest | pb.AttachRequest) -> str:
    """Read a request's name; empty where none was given.

    Raises:
        FieldError: It is too long, or has other characters than printable ones.
    """
    name = message.request_id
    if len(name) > MAX_REQUEST_ID_CHARS:
        raise FieldError(
            f"request_id has {len(name)} characters, limit {MAX_REQUEST_ID_CHARS}", "request_id"
        )
    if not PRINTABLE.issuperset(name):
        raise FieldError(f"request_id={name!r} must be printable ASCII, no spaces", "request_id")
    return name


def prompt_of(message: pb.GenerateRequest) -> str | Sequence[int]:
    """Read the prompt: text or token ids, which stay in the message: there may be many.

    Raises:
        FieldError: There is none.
    """
    match message.WhichOneof("prompt"):
        case "text":
            return message.text
        case "token_ids":
            return message.token_ids.ids
        case _:
            raise FieldError("prompt is not set, must be text or token_ids", "prompt")


def sampling_of(message: pb.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Read sampling parameters; what is not set is as in `defaults`.

    Raises:
        RequestError: A value is not allowed.
    """
    for name, limit in MOST_ENTRIES.items():
        if (count := len(getattr(message, name))) > limit:
            raise FieldError(f"{name} has {count} entries, limit {limit}", FIELD_PATHS[name])
    given: dict[str, Any] = {
        name: getattr(message, name) for name in SCALARS if message.HasField(name)
    }
    given |= {name: list(value) for name in LISTS if (value := getattr(message, name))}
    if message.logit_bias:
        given["logit_bias"] = dict(message.logit_bias)
    if message.no_max_tokens:
        if message.HasField("max_tokens"):
            raise FieldError(
                f"max_tokens={message.max_tokens} and no_max_tokens exclude each other",
                "sampling.max_tokens",
            )
        given["max_tokens"] = None
    return replace(defaults, **given) if given else defaults


def naming_fields() -> contextlib.AbstractContextManager[None]:
    """Name the field of the message that a `RequestError` is about."""
    return naming(FIELD_PATHS)


def message_of_sampling(params: SamplingParams | Mapping[str, Any] | None) -> pb.SamplingParams:
    """Write sampling parameters: all of them, or those that a mapping names.

    Raises:
        RequestError: A value is not allowed, or a name is not known.
    """
    if params is None:
        return pb.SamplingParams()
    names = list(params) if isinstance(params, Mapping) else NAMES
    checked = SamplingParams(**params) if isinstance(params, Mapping) else params
    message = pb.SamplingParams(no_max_tokens="max_tokens" in names and checked.max_tokens is None)
    for name in names:
        value = getattr(checked, name)
        if value is None:
            continue
        if name in LISTS:
            getattr(message, name).extend(value)
        elif name == "logit_bias":
            message.logit_bias.update(value)
        elif name == "seed":
            message.seed = value - 2**64 if value >= 2**63 else value
        else:
            setattr(message, name, value)
    return message


def message_of_request(
    prompt: str | Sequence[int],
    params: SamplingParams | Mapping[str, Any] | None,
    *,
    request_id: str = "",
    priority: int = 0,
    durable: bool | None = None,
) -> pb.GenerateRequest:
    """Write a request.

    Raises:
        RequestError: Something in it cannot be written, or its parameters are not allowed.
    """
    try:
        message = pb.GenerateRequest(
            request_id=request_id,
            sampling=message_of_sampling(params),
            priority=priority,
            durable=durable,
        )
        if isinstance(prompt, str):
            message.text = prompt
            message.return_prompt_token_ids = True
        else:
            message.token_ids.ids.extend(prompt)
            # An empty list must be refused for what it is.
            message.token_ids.SetInParent()
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"the request cannot be written: {error}") from error
    return message


def first_message(request: Request, request_id: str, *, has_ids: bool) -> pb.GenerateResponse:
    """Write what a stream begins with.

    Args:
        request: As the engine has it.
        request_id: As its caller named it.
        has_ids: Whether the caller asked for the prompt's tokens.
    """
    ids = request.prompt_token_ids
    prompt = pb.PromptInfo(num_tokens=len(ids), token_ids=ids if has_ids else ())
    return pb.GenerateResponse(request_id=request_id, prompt=prompt)


def add_updates(message: pb.GenerateResponse, updates: Iterable[Update]) -> None:
    """Add what steps gave to a message, an entry for each sample."""
    entries = {entry.index: entry for entry in message.outputs}
    # Joined at the end: a message keeps every text that was ever assigned to it.
    texts: dict[int, list[str]] = {}
    for update in updates:
        entry = entries.get(update.index)
        if entry is None:
            entry = entries[update.index] = message.outputs.add(index=update.index)
        if update.text:
            texts.setdefault(update.index, []).append(update.text)
        entry.token_ids.extend(update.token_ids)
        for position in update.logprobs:
            add_position(entry.logprobs.add(), position)
        if update.prompt_logprobs is not None:
            for position in update.prompt_logprobs:
                add_position(message.prompt.logprobs.add(), position or {})
        if update.finish_reason is not None:
            entry.finish.reason = REASONS[update.finish_reason]
            if isinstance(update.stop_reason, str):
                entry.finish.stop_string = update.stop_reason
            elif update.stop_reason is not None:
                entry.finish.stop_token_id = update.stop_reason
    for index, parts in texts.items():
        entries[index].text = "".join([entries[index].text, *parts])


def add_position(message: pb.PositionLogprobs, position: PositionLogprobs) -> None:
    """Write the log-probabilities of one position."""
    for token, one in position.items():
        message.tokens.add(
            token_id=token, logprob=one.logprob, rank=one.rank, decoded_token=one.decoded_token
        )


def add_response(output: RequestOutput, message: pb.GenerateResponse, now: float) -> None:
    """Add a message of a stream to what a client has, in place."""
    if message.request_id:
        output.request_id = message.request_id
    output.prompt_token_ids.extend(message.prompt.token_ids)
    if message.prompt.logprobs:
        output.prompt_logprobs = [
            position_of(entry) if entry.tokens else None for entry in message.prompt.logprobs
        ]
    for entry in message.outputs:
        while len(output.outputs) <= entry.index:
            output.outputs.append(CompletionOutput(index=len(output.outputs)))
        sample = output.outputs[entry.index]
        sample.text += entry.text
        sample.token_ids.extend(entry.token_ids)
        if entry.logprobs:
            positions = [position_of(position) for position in entry.logprobs]
            chosen = zip(entry.token_ids, positions, strict=True)
            total = sum(position[token].logprob for token, position in chosen)
            sample.logprobs = [] if sample.logprobs is None else sample.logprobs
            sample.logprobs.extend(positions)
            sample.cumulative_logprob = (sample.cumulative_logprob or 0.0) + total
        if entry.HasField("finish"):
            sample.finish_reason = REASON_NAMES.get(entry.finish.reason, "unknown")
            stop = entry.finish.WhichOneof("stop")
            sample.stop_reason = None if stop is None else getattr(entry.finish, stop)
        if entry.token_ids and output.metrics.first_token_time is None:
            output.metrics.first_token_time = now
    if message.HasField("usage"):
        output.num_cached_tokens = message.usage.cached_tokens
        output.remote_kv_tokens = message.usage.remote_kv_tokens
        output.instances_used = tuple(message.usage.instances_used)
        output.finished = True
        output.metrics.finished_time = now


def position_of(message: pb.PositionLogprobs) -> PositionLogprobs:
    """Read the log-probabilities of one position."""
    return {
        one.token_id: Logprob(
            logprob=one.logprob,
            rank=one.rank,
            decoded_token=one.decoded_token if one.HasField("decoded_token") else None,
        )
        for one in message.tokens
    }
