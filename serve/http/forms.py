"""The two ways OpenAI writes an answer: completions, and chats with their messages and deltas."""

import dataclasses
from typing import Any, Protocol

from distkv_jax.engine.outputs import Logprob, PositionLogprobs
from serve.http.calls import Call
from serve.http.pieces import (
    Piece,
    Prompt,
    finite,
    json_of_positions,
    ranked,
    token_text,
)


@dataclasses.dataclass(slots=True)
class Place:
    """A choice of an answer, and how far it has been told.

    Attributes:
        index: Of the choice: prompt x n + sample.
        prompt: Of which prompt.
        has_begun: Whether a piece of it was told.
        num_chars: Characters of its tokens that were told.
    """

    index: int
    prompt: Prompt
    has_begun: bool = False
    num_chars: int = 0


class Form(Protocol):
    """A way to write an answer.

    Attributes:
        prefix: Of the answer's id.
        whole: `object` of an answer in one.
        piece: `object` of a piece of a stream.
    """

    prefix: str
    whole: str
    piece: str

    def choice(self, call: Call, place: Place, piece: Piece, *, is_delta: bool) -> dict[str, Any]:
        """Write one choice of an answer or of a piece, and move its place on."""
        ...

    def head(self, call: Call, prompt: Prompt) -> dict[str, Any]:
        """Write what stands beside the choices, once."""
        ...


class CompletionForm:
    """OpenAI's older form, in which prompts and samples are plain text."""

    prefix = "cmpl-"
    whole = piece = "text_completion"

    def choice(self, call: Call, place: Place, piece: Piece, *, is_delta: bool) -> dict[str, Any]:
        """Write `text` and what was asked for besides."""
        del is_delta
        prompt, is_first = place.prompt, not place.has_begun
        place.has_begun = True
        choice: dict[str, Any] = {
            "index": place.index,
            "text": prompt.echo + piece.text if is_first else piece.text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if call.has_logprobs:
            choice["logprobs"] = self._logprobs(call, place, piece, has_prompt=is_first)
        if call.has_ids:
            choice["token_ids"] = piece.token_ids
        if is_first and call.has_ids:
            choice["prompt_token_ids"] = prompt.token_ids
        if is_first and call.has_prompt_logprobs:
            choice["prompt_logprobs"] = json_of_positions(prompt.positions)
        return choice

    def head(self, call: Call, prompt: Prompt) -> dict[str, Any]:
        """Write nothing: each choice has its prompt's."""
        del call, prompt
        return {}

    def _logprobs(
        self, call: Call, place: Place, piece: Piece, *, has_prompt: bool
    ) -> dict[str, Any]:
        """Write log-probabilities as four lists; offsets count from the start of `text`."""
        ids: list[int] = list(piece.token_ids)
        positions: list[PositionLogprobs | None] = list(piece.positions)
        if has_prompt and call.echoes_logprobs:
            ids = [*place.prompt.token_ids, *ids]
            positions = [*(place.prompt.positions or ()), *positions]
        texts: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, position in zip(ids, positions, strict=True):
            if position is None:
                text, value, top = place.prompt.first_token, None, None
            else:
                text = token_text(token, position[token])
                value = finite(position[token].logprob)
                top = {text: value}
                for other, entry in reversed(ranked(position, call.num_top)):
                    # Tokens that look the same share a key: the likeliest has it.
                    top[token_text(other, entry)] = finite(entry.logprob)
            texts.append(text)
            values.append(value)
            tops.append(top)
            offsets.append(place.num_chars)
            place.num_chars += len(text)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops if call.num_top else None,
            "text_offset": offsets,
        }


class ChatForm:
    """OpenAI's form of conversations."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def choice(self, call: Call, place: Place, piece: Piece, *, is_delta: bool) -> dict[str, Any]:
        """Write a message, or what a message grows by; its role comes first."""
        message: dict[str, Any] = {} if place.has_begun else {"role": "assistant"}
        place.has_begun = True
        message["content"] = piece.text
        if not is_delta:
            message["refusal"] = None
        choice: dict[str, Any] = {
            "index": place.index,
            "delta" if is_delta else "message": message,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if call.has_logprobs:
            choice["logprobs"] = {
                "content": [
                    json_of_token(token, position[token])
                    | {
                        "top_logprobs": [
                            json_of_token(other, entry)
                            for other, entry in ranked(position, call.num_top)
                        ]
                    }
                    for token, position in zip(piece.token_ids, piece.positions, strict=True)
                ],
                "refusal": None,
            }
        if call.has_ids:
            choice["token_ids"] = piece.token_ids
        return choice

    def head(self, call: Call, prompt: Prompt) -> dict[str, Any]:
        """Write what there is of the prompt, of which a chat has one."""
        head: dict[str, Any] = {}
        if call.has_ids:
            head["prompt_token_ids"] = prompt.token_ids
        if call.has_prompt_logprobs:
            head["prompt_logprobs"] = json_of_positions(prompt.positions)
        return head


def json_of_token(token: int, entry: Logprob) -> dict[str, Any]:
    """Write a token of a chat with its log-probability."""
    text = token_text(token, entry)
    return {
        "token": text,
        "logprob": finite(entry.logprob),
        "bytes": list(text.encode("utf-8", "replace")),
    }
