"""What is sent: a prompt, how much to generate, and when."""

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = npt.NDArray[np.int32]
"""Ids of a prompt; an array, since a trace's prompts have hundreds of millions of them."""


class Item(NamedTuple):
    """One request.

    Attributes:
        prompt: Text or token ids.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Most tokens to generate.
        arrival_s: When the trace has it, in seconds since its first request; None without times.
    """

    prompt: str | TokenIds
    prompt_tokens: int
    output_tokens: int
    arrival_s: float | None = None


class Row(NamedTuple):
    """A request of a trace, which has lengths and no text.

    Attributes:
        arrival_s: In seconds of the trace's own clock.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens that were generated.
        blocks: For each 512 tokens of the prompt the name of its content; empty where not known.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class Workload(NamedTuple):
    """All requests of a measurement.

    Attributes:
        items: In the order of sending.
        notes: What a reader of the figures should know of them.
    """

    items: list[Item]
    notes: list[str]
