"""Refuses bodies of more parts than could be right before they are parsed.

Parsing holds the interpreter's lock, in whatever thread: 16 MiB of small messages would stop every
stream for seconds. Counting is numpy's, which lets the lock go.
"""

from typing import NamedTuple

import numpy as np

from distkv_jax.llm import LLM
from serve.http.bodies import MAX_PROMPTS
from serve.http.failure import HttpError

SMALL_BODY = 65_536
"""Bytes of a body that is parsed without a look."""
MAX_PARTS = 16_384
"""Strings, names of fields, lists and objects of a body; a message has five."""
OTHER_VALUES = 131_072
"""Numbers and others besides the prompts': lists of token ids to choose from."""
MOST_PROMPT_IDS = 2**19
"""Token ids of all prompts of a call, which take a parser about 20 ms; a longest prompt may have
more."""
CHUNK = 2**20
"""Bytes looked at in one go."""
QUOTE, BACKSLASH, COMMA = b'"\\,'
OPENING = tuple(b"[{")


class Counts(NamedTuple):
    """How much there is in a body.

    Attributes:
        num_parts: Strings, names of fields, lists and objects.
        num_commas: Between values, of which there are as many and a few more.
    """

    num_parts: int
    num_commas: int


def most_values(llm: LLM) -> int:
    """Say how many values a body may have, by what may wait for the engine."""
    ids = llm.config.max_num_queued_tokens or MAX_PROMPTS * llm.max_model_len
    return OTHER_VALUES + max(llm.max_model_len, min(ids, MOST_PROMPT_IDS))


def check_structure(body: bytes, max_values: int) -> None:
    """Look at how many parts a body has.

    Raises:
        HttpError: It has too many.
    """
    counts = counted(body)
    if counts.num_parts > MAX_PARTS:
        raise too_many(counts.num_parts, "strings, names, lists and objects", MAX_PARTS)
    if counts.num_commas > max_values:
        raise too_many(counts.num_commas, "values", max_values)


def counted(body: bytes) -> Counts:
    """Count the parts of a body; of what is no JSON the parser tells."""
    num_parts = num_commas = 0
    is_inside = is_escaped = False
    for start in range(0, len(body), CHUNK):
        data = np.frombuffer(body, np.uint8, min(CHUNK, len(body) - start), start)
        quotes = data == QUOTE
        quotes[0] &= not is_escaped
        escaped = after_escapes(data, is_first_escaped=is_escaped)
        is_escaped = bool(len(escaped)) and int(escaped[-1]) == len(data)
        quotes[escaped[:-1] if is_escaped else escaped] = False
        # True from a string's first quote to the byte before its last one.
        inside = np.logical_xor.accumulate(quotes) ^ is_inside
        is_inside = bool(inside[-1])
        num_commas += np.count_nonzero((data == COMMA) & ~inside)
        num_parts += np.count_nonzero(quotes & inside)
        num_parts += sum(np.count_nonzero((data == one) & ~inside) for one in OPENING)
    return Counts(int(num_parts), int(num_commas))


def after_escapes(data: np.ndarray, *, is_first_escaped: bool) -> np.ndarray:
    """List the places of bytes behind a backslash that is not itself behind one."""
    places = np.flatnonzero(data == BACKSLASH)
    if is_first_escaped and len(places) and places[0] == 0:
        places = places[1:]
    begins = np.diff(places, prepend=-2) != 1
    first = np.maximum.accumulate(np.where(begins, places, 0))
    return places[(places - first) % 2 == 0] + 1


def too_many(count: int, what: str, limit: int) -> HttpError:
    """Say what a body has too many of."""
    return HttpError(413, f"the body has {count} {what}, limit {limit}", code="request_too_large")
