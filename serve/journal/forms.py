"""Requests and what they gave as text for the journal, and back."""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from distkv_jax.engine.outputs import Logprob, PositionLogprobs, Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DistKVError, RequestLost
from serve.errors import KINDS_BY_REASON, made, reason_of


class Entry(NamedTuple):
    """A request as it is kept. Times are seconds since 1970: other clocks end with a process.

    Attributes:
        caller: Name behind the API key; empty where the server has no keys.
        name: As its caller named it.
        prompt_token_ids: At least one.
        params: How it is sampled; with a seed, so that it goes on as it began.
        priority: Lower first.
        deadline: When it ends at the latest; None for never.
        arrival: When it came.
    """

    caller: str
    name: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int
    deadline: float | None
    arrival: float


def entry_of(request: Request, *, caller: str, name: str) -> Entry:
    """Make a request's entry."""
    offset = time.time() - time.monotonic()
    return Entry(
        caller=caller,
        name=name,
        prompt_token_ids=request.prompt_token_ids,
        params=request.params,
        priority=request.priority,
        deadline=None if request.deadline is None else request.deadline + offset,
        arrival=request.arrival + offset,
    )


def text_of_entry(entry: Entry) -> str:
    """Write what `entry_from` reads, but for the caller and the name."""
    return json.dumps(
        {
            "prompt": entry.prompt_token_ids,
            "params": dataclasses.asdict(entry.params),
            "priority": entry.priority,
            "deadline": entry.deadline,
            "arrival": entry.arrival,
        },
        separators=(",", ":"),
    )


def entry_from(caller: str, name: str, text: str) -> Entry:
    """Read what `text_of_entry` wrote.

    Raises:
        ValueError: It did not write that.
        LookupError: The same.
        TypeError: The same.
    """
    given = json.loads(text)
    params = given["params"]
    if params["logit_bias"] is not None:
        params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    return Entry(
        caller=caller,
        name=name,
        prompt_token_ids=tuple(given["prompt"]),
        params=SamplingParams(**params),
        priority=given["priority"],
        deadline=given["deadline"],
        arrival=given["arrival"],
    )


def text_of_updates(updates: Iterable[Update]) -> str:
    """Write what steps gave, each token apart with its own text."""
    return json.dumps([_plain(update) for update in updates], separators=(",", ":"))


def updates_from(request: Request, text: str) -> list[Update]:
    """Read what `text_of_updates` wrote.

    Raises:
        ValueError: It did not write that.
        LookupError: The same.
        TypeError: The same.
    """
    return [_update(request, one) for one in json.loads(text)]


def _plain(update: Update) -> list[Any]:
    token = update.token_ids[0] if update.token_ids else None
    plain: list[Any] = [update.index, token, update.text]
    more: dict[str, Any] = {}
    if update.logprobs:
        more["logprobs"] = [_position(one) for one in update.logprobs]
    if update.prompt_logprobs is not None:
        more["prompt"] = [None if one is None else _position(one) for one in update.prompt_logprobs]
    if update.finish_reason is not None:
        more["finish"] = [
            update.finish_reason,
            update.stop_reason,
            update.instances_used,
            update.remote_kv_tokens,
            update.num_cached_tokens,
        ]
    return [*plain, more] if more else plain


def _update(request: Request, plain: Sequence[Any]) -> Update:
    index, token, text, *rest = plain
    more = rest[0] if rest else {}
    update = Update(request, index, () if token is None else (token,), text)
    if "logprobs" in more:
        update = update._replace(logprobs=tuple(map(_logprobs, more["logprobs"])))
    if "prompt" in more:
        scored = tuple(None if one is None else _logprobs(one) for one in more["prompt"])
        update = update._replace(prompt_logprobs=scored)
    if "finish" in more:
        reason, stop, instances, remote, cached = more["finish"]
        update = update._replace(
            finish_reason=reason,
            stop_reason=stop,
            instances_used=tuple(instances),
            remote_kv_tokens=remote,
            num_cached_tokens=cached,
        )
    return update


def _position(position: PositionLogprobs) -> list[list[Any]]:
    return [[token, one.logprob, one.rank, one.decoded_token] for token, one in position.items()]


def _logprobs(plain: Sequence[Sequence[Any]]) -> PositionLogprobs:
    return {
        token: Logprob(logprob=logprob, rank=rank, decoded_token=text)
        for token, logprob, rank, text in plain
    }


def text_of_error(error: DistKVError) -> str:
    """Write why a request ended before its time."""
    return json.dumps([reason_of(type(error)), str(error)])


def error_from(text: str) -> DistKVError:
    """Read what `text_of_error` wrote; an error of a class that is no more is `RequestLost`."""
    reason, message = json.loads(text)
    return made(KINDS_BY_REASON.get(reason, RequestLost), message, {})


def kept_text(name: str) -> str:
    """Say what to do instead of sending a durable request again."""
    return f"request_id {name!r} is of a durable request of yours: attach to it"
