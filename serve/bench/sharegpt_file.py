"""Conversations of people with a model: the first question and the length of its answer.

Source: ShareGPT as `ShareGPT_V3_unfiltered_cleaned_split.json` has it, and the limits by which
`vllm bench serve` leaves conversations out.
"""

import json
from pathlib import Path
from typing import NamedTuple

from distkv_jax.errors import ConfigError

LEAST_TOKENS = 4
MOST_PROMPT_TOKENS = 1024
MOST_TOKENS = 2048


class Turn(NamedTuple):
    """What was asked first and answered."""

    question: str
    answer: str


def read_sharegpt(path: str) -> list[Turn]:
    """Read a JSON list of {"conversations": [{"from": …, "value": …}, …]}.

    Returns:
        The first two turns of each conversation that has two.

    Raises:
        ConfigError: The file is not of that form; it says which entry.
        OSError: It cannot be read.
    """
    try:
        entries = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{path} must be a JSON list of objects with conversations")
    turns = []
    for number, entry in enumerate(entries):
        where = f"{path} entry {number}"
        turns_here = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns_here, list):
            raise ConfigError(f"{where}: must be an object with a list conversations")
        if len(turns_here) < 2:
            continue
        values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns_here[:2]]
        question, answer = values
        if not isinstance(question, str) or not isinstance(answer, str):
            raise ConfigError(f"{where}: the first two conversations must have a text value")
        turns.append(Turn(question, answer))
    if not turns:
        raise ConfigError(f"{path} has no conversation of two turns")
    return turns


def is_usual(prompt_tokens: int, output_tokens: int, *, is_recorded: bool) -> bool:
    """Say whether a conversation is kept: neither tiny nor long, as everybody measures.

    Args:
        prompt_tokens: Tokens of the question.
        output_tokens: Tokens to generate.
        is_recorded: Whether that is the recorded answer's length.
    """
    return (
        prompt_tokens >= LEAST_TOKENS
        and (output_tokens >= LEAST_TOKENS or not is_recorded)
        and prompt_tokens <= MOST_PROMPT_TOKENS
        and prompt_tokens + output_tokens <= MOST_TOKENS
    )
