"""From a checked body to the requests it asks for, and how their answer is to be written."""

import asyncio
import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request

from distkv_jax.engine.sampling_params import SamplingParams
from serve.ask import SMALL_PROMPT, Ask
from serve.dispatch import Dispatcher
from serve.errors import FieldError, naming
from serve.http.access import caller_of
from serve.http.bodies import MAX_PROMPTS, ChatBody, CompletionBody, SamplingBody
from serve.http.failure import HttpError
from serve.http.sampling import DIRECT, sampling_of, size_of
from serve.http.validate import shown
from serve.keys import Caller
from serve.observe.context import trace_headers
from serve.translate import MAX_REQUEST_ID_CHARS, PRINTABLE

T = TypeVar("T")
TIMEOUT_HEADER = "x-request-timeout"
# "bad word 'x' has 9 tokens, ..."
COMPLETION_PATHS = {name: name for name in DIRECT} | {
    "prompt": "prompt",
    "bad": "bad_words",
    "logprobs": "logprobs",
    "logit_bias": "logit_bias",
}
CHAT_PATHS = COMPLETION_PATHS | {
    "prompt": "messages",
    "messages": "messages",
    "logprobs": "top_logprobs",
}
PROMPT_FORMS = "text, token ids, or a list of either"


class Call(NamedTuple):
    """What one HTTP request asks for.

    Attributes:
        caller: Who.
        request_id: Its name; of several prompts each has a number behind it.
        asks: One for each prompt.
        echoes: Text to be repeated before the samples of each prompt; empty for none.
        paths: The body's fields by the first word of an error about them.
        model: As the server calls it.
        is_stream: Answer in pieces.
        has_usage: Whether a stream ends with what it took.
        has_ids: Whether token ids are told.
        has_logprobs: Whether log-probabilities of the output are told.
        num_top: Most likely tokens to tell at each position.
        echoes_logprobs: Whether those of the prompt stand before those of the output.
        has_prompt_logprobs: Whether those of the prompt are told apart.
        is_silent: The prompt alone is asked about, and no token is told.
    """

    caller: Caller
    request_id: str
    asks: tuple[Ask, ...]
    echoes: tuple[str, ...]
    paths: Mapping[str, str]
    model: str
    is_stream: bool
    has_usage: bool
    has_ids: bool
    has_logprobs: bool
    num_top: int
    echoes_logprobs: bool
    has_prompt_logprobs: bool
    is_silent: bool


class CallMaker:
    """Makes calls for one model."""

    def __init__(self, dispatcher: Dispatcher, model_name: str) -> None:
        self.model_name = model_name
        self._dispatcher = dispatcher
        self._llm = llm = dispatcher.llm
        self._defaults = llm.get_default_sampling_params()
        # Sixteen tokens are no answer: a chat goes on to its end, unless the checkpoint says when.
        self._chat_defaults = self._defaults
        if self._defaults.max_tokens == SamplingParams().max_tokens:
            self._chat_defaults = dataclasses.replace(self._defaults, max_tokens=None)

    async def completion(self, request: Request, body: CompletionBody, arrival: float) -> Call:
        """Make the call of a completion.

        Raises:
            RequestError: A value cannot be.
        """
        self._check(body)
        prompts = prompts_of(body.prompt)
        is_silent = body.max_tokens == 0
        if is_silent and not body.echo:
            raise FieldError("max_tokens=0 must be at least 1, or go with echo", "max_tokens")
        given: dict[str, Any] = {"logprobs": body.logprobs}
        if is_silent:
            given["max_tokens"] = 1
        if body.echo and body.logprobs is not None:
            given["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
        with naming(COMPLETION_PATHS):
            params = await maybe_in_thread(
                size_of(body), lambda: sampling_of(body, self._defaults, given)
            )
        echoes = [""] * len(prompts)
        if body.echo:
            size = sum(map(len, prompts))
            echoes = await maybe_in_thread(size, lambda: [self._text_of(one) for one in prompts])
        call = self._call(request, body, prompts, params, arrival, "http.completions")
        return call._replace(
            echoes=tuple(echoes),
            paths=COMPLETION_PATHS,
            has_logprobs=body.logprobs is not None,
            num_top=body.logprobs or 0,
            echoes_logprobs=bool(body.echo) and body.logprobs is not None,
            is_silent=is_silent,
        )

    async def chat(self, request: Request, body: ChatBody, arrival: float) -> Call:
        """Make the call of a chat.

        Raises:
            RequestError: A value cannot be.
        """
        self._check(body)
        given: dict[str, Any] = {}
        if body.max_completion_tokens is not None:
            if body.max_tokens not in (None, body.max_completion_tokens):
                raise FieldError(
                    f"max_tokens={body.max_tokens} and max_completion_tokens="
                    f"{body.max_completion_tokens} differ, one is enough",
                    "max_tokens",
                )
            given["max_tokens"] = body.max_completion_tokens
        if body.top_logprobs is not None and not body.logprobs:
            raise FieldError("top_logprobs needs logprobs=true", "top_logprobs")
        if body.logprobs:
            given["logprobs"] = body.top_logprobs or 0
        messages = [plain_message(one) for one in body.messages]
        with naming(CHAT_PATHS):
            params = await maybe_in_thread(
                size_of(body), lambda: sampling_of(body, self._chat_defaults, given)
            )
        call = self._call(request, body, [""], params, arrival, "http.chat_completions")
        return call._replace(
            # Templated and tokenised when it is counted in: its quota and its time run meanwhile.
            asks=tuple(ask._replace(chat=messages) for ask in call.asks),
            has_logprobs=bool(body.logprobs),
            num_top=body.top_logprobs or 0,
        )

    def _check(self, body: SamplingBody) -> None:
        if body.model not in (None, self.model_name):
            raise unknown_model(str(body.model), self.model_name, field="model")
        if body.stream_options is not None and not body.stream:
            raise FieldError("stream_options needs stream=true", "stream_options")

    def _call(
        self,
        request: Request,
        body: SamplingBody,
        prompts: Sequence[str | tuple[int, ...]],
        params: SamplingParams,
        arrival: float,
        operation: str,
    ) -> Call:
        if body.request_id is not None:
            if not is_request_id(body.request_id):
                raise FieldError(
                    f"request_id={shown(body.request_id)} must be 1..{MAX_REQUEST_ID_CHARS} "
                    "printable ASCII characters, no spaces",
                    "request_id",
                )
            request.state.request_id = body.request_id
        caller, count = caller_of(request), len(prompts)
        names = names_of(request.state.request_id, count)
        if body.request_id is None and any(self._dispatcher.is_live(caller, one) for one in names):
            # The header is one for all calls of a trace to some; here a name is one request's.
            suffix = f"-{secrets.token_hex(4)}"
            room = MAX_REQUEST_ID_CHARS - len(suffix)
            request.state.request_id = request.state.request_id[:room] + suffix
            names = names_of(request.state.request_id, count)
        timeout_s = timeout_of(request)
        asks = [
            Ask(
                prompt=prompt,
                params=params,
                request_id=name,
                priority=body.priority or 0,
                deadline=None if timeout_s is None else arrival + timeout_s,
                operation=operation,
                carrier=trace_headers(request.headers.items()),
                arrival=arrival,
            )
            for name, prompt in zip(names, prompts, strict=True)
        ]
        return Call(
            caller=caller,
            request_id=request.state.request_id,
            asks=tuple(asks),
            echoes=("",) * len(asks),
            paths=CHAT_PATHS,
            model=self.model_name,
            is_stream=bool(body.stream),
            has_usage=body.stream_options is not None and body.stream_options.include_usage,
            has_ids=bool(body.return_token_ids),
            has_logprobs=False,
            num_top=0,
            echoes_logprobs=False,
            has_prompt_logprobs=body.prompt_logprobs is not None,
            is_silent=False,
        )

    def _text_of(self, prompt: str | tuple[int, ...]) -> str:
        if isinstance(prompt, str):
            return prompt
        largest = self._llm.model_config.vocab_size - 1
        # The tokenizer knows neither.
        for token in (min(prompt), max(prompt)):
            if not 0 <= token <= largest:
                raise FieldError(
                    f"prompt has token id {shown(token)}, the model has 0..{largest}", "prompt"
                )
        return self._llm.get_tokenizer().decode(prompt, skip_special_tokens=False)


def prompts_of(prompt: Any) -> list[str | tuple[int, ...]]:
    """Sort out the forms a prompt has.

    Raises:
        FieldError: It has none of them, or there are too many.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        kinds = set(map(type, prompt))
        if kinds == {int}:
            return [tuple(prompt)]
        if len(prompt) > MAX_PROMPTS and kinds <= {str, list}:
            raise FieldError(f"prompt has {len(prompt)} prompts, limit {MAX_PROMPTS}", "prompt")
        if kinds == {str} and all(prompt):
            return list(prompt)
        if kinds == {list} and all(set(map(type, one)) == {int} for one in prompt):
            return [tuple(one) for one in prompt]
    raise FieldError(f"prompt={shown(prompt)} must be {PROMPT_FORMS}, none of them empty", "prompt")


def plain_message(message: Any) -> dict[str, str]:
    """Write a message as templates take it; parts stand in lines of their own, as in vLLM."""
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    plain = {"role": message.role, "content": content}
    return plain if message.name is None else plain | {"name": message.name}


def names_of(request_id: str, count: int) -> list[str]:
    """Name a call's prompts."""
    return [request_id] if count == 1 else [f"{request_id}-{number}" for number in range(count)]


def is_request_id(name: str) -> bool:
    """Whether a request can be called so."""
    return 1 <= len(name) <= MAX_REQUEST_ID_CHARS and PRINTABLE.issuperset(name)


def timeout_of(request: Request) -> float | None:
    """Read how many seconds a request has; None for any number.

    Raises:
        HttpError: The header is not a number above 0.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise HttpError(
            400,
            f"{TIMEOUT_HEADER}={shown(text)} must be a number of seconds above 0",
            code="invalid_value",
            field=TIMEOUT_HEADER,
        )
    return timeout_s


def unknown_model(name: str, known: str, *, field: str | None) -> HttpError:
    """Say which model there is."""
    text = f"the model {shown(name)} does not exist, this server has {known!r}"
    return HttpError(404, text, code="model_not_found", field=field)


async def maybe_in_thread(size: int, work: Callable[[], T]) -> T:
    """Do something with a text or a list; a long one must not hold up everybody's tokens."""
    return work() if size <= SMALL_PROMPT else await asyncio.to_thread(work)
