"""What can be asked for in JSON: OpenAI's fields, and vLLM's for what OpenAI has no name for."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from distkv_jax.engine.sampling_params import MAX_LOGPROBS, MAX_N, MAX_STOP_STRINGS

MAX_PROMPTS = 256
"""Prompts of one call; each is a request of its own for queues and quotas."""
MAX_PRIORITY = 2**31 - 1

IGNORED = {
    "user": "names an end user to OpenAI's abuse checks, of which there are none here",
    "safety_identifier": "the same, by its newer name",
    "metadata": "kept by OpenAI beside stored answers",
    "store": "asks OpenAI to keep the answer; nothing is kept here",
    "service_tier": "chooses a price",
    "prompt_cache_key": "steers OpenAI's cache; prefixes are shared here without it",
    "prompt_cache_retention": "the same",
    "parallel_tool_calls": "without tools it changes nothing",
}
"""Fields that clients send and that change no answer, each with why."""

NOT_BUILT: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "best_of": (1,),
}
"""Fields for what the server does not have, each with the values besides null that ask for none."""
NOT_BUILT_IN_MESSAGES: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "tool_calls": ([],),
    "function_call": (),
}
"""The same of a message: an answer that is sent back as a turn has them, null."""


def bounded(low: float, high: float | None = None) -> Any:
    """Declare a field with bounds for the schema's readers; `SamplingParams` is who checks."""
    bounds = {"minimum": low} | ({} if high is None else {"maximum": high})
    return Field(default=None, json_schema_extra=bounds)  # pyright: ignore (a dict is JSON)


class Body(BaseModel):
    """An object whose unknown fields are refused by name, by `validate`.

    Pydantic would collect an error for each of them, and a body of 16 MiB has room for millions.

    Attributes:
        not_built: Fields for what the server does not have, as in `NOT_BUILT`.
    """

    not_built: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({})

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool = False


Harmless = create_model(
    "Harmless",
    __base__=Body,
    **{
        name: (Any, Field(default=None, description=f"Ignored: {why}."))
        for name, why in IGNORED.items()
    },  # pyright: ignore (the overloads want keywords)
)


class SamplingBody(Harmless):
    """What both kinds of completion take; a field that is null is as one that is not there."""

    not_built = NOT_BUILT

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = bounded(0)
    n: int | None = bounded(1, MAX_N)
    temperature: float | None = bounded(0)
    top_p: float | None = bounded(0, 1)
    presence_penalty: float | None = bounded(-2, 2)
    frequency_penalty: float | None = bounded(-2, 2)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)] | None = (
        None
    )
    # Checked by SamplingParams, which counts before it looks at each.
    logit_bias: dict[str, Any] | None = None
    # vLLM's
    top_k: int | None = bounded(-1)
    min_p: float | None = bounded(0, 1)
    repetition_penalty: float | None = bounded(0)
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = bounded(0)
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = None
    allowed_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = None
    prompt_logprobs: int | None = bounded(0, MAX_LOGPROBS)
    return_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY - 1, le=MAX_PRIORITY)] | None = None
    request_id: str | None = None
    # Not built
    response_format: dict[str, Any] | None = None


PROMPT_SCHEMA: Any = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
            "items": {"type": "string", "minLength": 1},
        },
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        },
    ]
}


class CompletionBody(SamplingBody):
    """The body of `POST /v1/completions`."""

    # Checked by `asks`: pydantic takes seconds for a million token ids.
    prompt: Any = Field(json_schema_extra=PROMPT_SCHEMA)
    echo: bool | None = None
    logprobs: int | None = bounded(0, MAX_LOGPROBS)
    # Not built
    suffix: str | None = None
    best_of: int | None = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn of a conversation."""

    not_built = NOT_BUILT_IN_MESSAGES

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    # Not built
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None


class ChatBody(SamplingBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = bounded(1)
    logprobs: bool | None = None
    top_logprobs: int | None = bounded(0, MAX_LOGPROBS)
    # Not built
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[Any] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
