"""Prompts in all forms a caller may give them: text, token ids, or a dict with either."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from distkv_jax.errors import RequestError
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer


class TextPrompt(TypedDict):
    """A prompt of text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt of token ids."""

    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
"""Whatever `LLM.generate` takes for one request."""


class Parsed(NamedTuple):
    """A prompt as the engine takes it."""

    text: str | None
    token_ids: tuple[int, ...]


def is_single(prompts: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    if isinstance(prompts, str | Mapping):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and _is_token(prompts[0])


def parse_prompt(prompt: Prompt, tokenizer: Tokenizer | None) -> Parsed:
    """Turn a prompt into token ids.

    Raises:
        RequestError: It has none of the forms, is empty, or is text without a tokenizer.
    """
    if isinstance(prompt, Mapping):
        known = {"prompt", "prompt_token_ids"}
        if len(prompt) != 1 or not set(prompt) <= known:
            raise RequestError(
                f"prompt has keys {sorted(prompt)}, expected one of {', '.join(sorted(known))}"
            )
        (inner,) = prompt.values()
        if isinstance(inner, str) != ("prompt" in prompt):
            raise RequestError(
                f"{next(iter(prompt))} is a {type(inner).__name__}, "
                "expected text in prompt, token ids in prompt_token_ids"
            )
        return parse_prompt(inner, tokenizer)
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError("prompt is empty, must have at least 1 character")
        return Parsed(prompt, tuple(require_tokenizer(tokenizer).encode(prompt)))
    tokens = list(prompt) if isinstance(prompt, Sequence) or hasattr(prompt, "tolist") else None
    if tokens is None or not all(_is_token(token) for token in tokens):
        raise RequestError(
            f"prompt is a {type(prompt).__name__}, expected text, a list of token ids, "
            "{'prompt': text} or {'prompt_token_ids': ids}"
        )
    if not tokens:
        raise RequestError("prompt is empty, must have at least 1 token")
    return Parsed(None, tuple(int(token) for token in tokens))


def _is_token(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
