"""Prompts in all forms a caller may give them: text, token ids, or a dict with either."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Int

from distkv_jax.errors import PromptTooLong, RequestError
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer

Prompt = str | Sequence[int] | Int[np.ndarray, " tokens"] | Mapping[str, object]
"""Whatever `LLM.generate` takes for one request; a dict has `prompt` or `prompt_token_ids`."""


class Parsed(NamedTuple):
    """A prompt as the engine takes it."""

    text: str | None
    token_ids: tuple[int, ...]


def is_single(prompts: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and _is_token(prompts[0])


def parse_prompt(
    prompt: object, tokenizer: Tokenizer | None, max_model_len: int | None = None
) -> Parsed:
    """Turn a prompt into token ids.

    Args:
        prompt: In any form.
        tokenizer: For text.
        max_model_len: Positions the model has; text that needs more is not tokenised first.

    Raises:
        RequestError: It has none of the forms, is empty, or is text without a tokenizer.
        PromptTooLong: It is so long a text that no tokens of it would fit.
    """
    if isinstance(prompt, Mapping):
        known = ("prompt", "prompt_token_ids")
        if len(prompt) != 1 or not set(prompt) <= set(known):
            given = sorted(map(str, prompt))
            raise RequestError(f"prompt has keys {given}, expected one of {', '.join(known)}")
        ((key, inner),) = prompt.items()
        if isinstance(inner, str) != (key == "prompt") or isinstance(inner, Mapping):
            raise RequestError(
                f"{key} is a {type(inner).__name__}, "
                "expected text in prompt, token ids in prompt_token_ids"
            )
        return parse_prompt(inner, tokenizer, max_model_len)
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError("prompt is empty, must have at least 1 character")
        tokenizer = require_tokenizer(tokenizer)
        if max_model_len is not None:
            _check_length(prompt, tokenizer, max_model_len)
        return Parsed(prompt, tuple(tokenizer.encode(prompt)))
    token_ids = _token_ids(prompt)
    if token_ids is None:
        raise RequestError(
            f"prompt is a {type(prompt).__name__}, expected text, a list of token ids, "
            "{'prompt': text} or {'prompt_token_ids': ids}"
        )
    if not token_ids:
        raise RequestError("prompt is empty, must have at least 1 token")
    return Parsed(None, token_ids)


def _check_length(text: str, tokenizer: Tokenizer, max_model_len: int) -> None:
    longest = tokenizer.max_token_bytes
    # Counting the bytes of a short text would cost more than it saves.
    if longest is None or 4 * len(text) <= longest * max_model_len:
        return
    size = len(text.encode("utf-8", "surrogatepass"))
    at_least = -(-size // longest)
    if at_least >= max_model_len:
        raise PromptTooLong(
            f"prompt has at least {at_least} tokens, the model's limit is {max_model_len} "
            "with at least 1 generated token",
            given=at_least,
            limit=max_model_len - 1,
        )


def _token_ids(prompt: object) -> tuple[int, ...] | None:
    """Read a list or an array of token ids; None where it is something else."""
    given = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        return None
    token_ids = tuple(int(value) for value in given if _is_token(value))
    return token_ids if len(token_ids) == len(given) else None


def _is_token(value: object) -> TypeGuard[numbers.Integral]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
