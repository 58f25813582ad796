"""What an answer is put together from: a sample's updates, and log-probabilities as JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from distkv_jax.engine.outputs import Logprob, PositionLogprobs, Update

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not; vLLM's number."""


@dataclasses.dataclass(slots=True)
class Piece:
    """What came of one sample since the last piece.

    Attributes:
        text: New text.
        token_ids: New tokens.
        positions: One entry for each of them, where asked for.
        finish_reason: Set in the sample's last piece.
        stop_reason: As in `Update`.
    """

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    positions: list[PositionLogprobs] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


def gathered(updates: Iterable[Update]) -> dict[int, Piece]:
    """Join updates, by sample."""
    pieces: dict[int, Piece] = {}
    texts: dict[int, list[str]] = {}
    for update in updates:
        piece = pieces.get(update.index)
        if piece is None:
            piece = pieces[update.index] = Piece()
        texts.setdefault(update.index, []).append(update.text)
        piece.token_ids.extend(update.token_ids)
        piece.positions.extend(update.logprobs)
        if update.finish_reason is not None:
            piece.finish_reason = update.finish_reason
            piece.stop_reason = update.stop_reason
    for index, piece in pieces.items():
        piece.text = "".join(texts[index])
    return pieces


class Prompt(NamedTuple):
    """What an answer tells of a prompt.

    Attributes:
        token_ids: Its tokens.
        positions: Log-probabilities of each, None for the first; where asked for.
        echo: Its text, where it is to be repeated.
        first_token: Text of its first token, which no log-probability names.
    """

    token_ids: Sequence[int]
    positions: Sequence[PositionLogprobs | None] | None
    echo: str
    first_token: str


def token_text(token: int, entry: Logprob) -> str:
    """Show a token; one without text by its number, as vLLM does."""
    return f"token_id:{token}" if entry.decoded_token is None else entry.decoded_token


def finite(logprob: float) -> float:
    """Give a log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)


def ranked(position: PositionLogprobs, count: int) -> list[tuple[int, Logprob]]:
    """List the most likely tokens of a position, best first."""
    entries = sorted(position.items(), key=lambda item: item[1].rank)
    return [item for item in entries if item[1].rank <= count]


def json_of_positions(
    positions: Sequence[PositionLogprobs | None] | None,
) -> list[dict[str, Any] | None] | None:
    """Write a prompt's log-probabilities as vLLM does."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            str(token): {
                "logprob": finite(entry.logprob),
                "rank": entry.rank,
                "decoded_token": entry.decoded_token,
            }
            for token, entry in position.items()
        }
        for position in positions
    ]
