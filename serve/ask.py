"""What a caller asks for, before it is tokenised."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from distkv_jax.engine.prompt import Prompt
from distkv_jax.engine.request import Known
from distkv_jax.engine.sampling_params import SamplingParams

SMALL_PROMPT = 2048
"""Characters or tokens of a prompt that is tokenised and checked on the event loop; longer ones
have a thread, so that they do not hold up everybody's tokens."""


class Ask(NamedTuple):
    """A request before it is tokenised.

    Attributes:
        prompt: Text or token ids.
        params: How to sample.
        request_id: As the caller named it; empty takes a new name.
        priority: Lower first.
        deadline: `time.monotonic()`, or None.
        operation: As in `Record`.
        carrier: As in `Record`.
        arrival: `time.monotonic()` when it came, before it was read; None for now.
        chat: Messages of which the model's template makes the prompt; empty for none.
        resumed: As in `Request`.
    """

    prompt: Prompt
    params: SamplingParams
    request_id: str = ""
    priority: int = 0
    deadline: float | None = None
    operation: str = ""
    carrier: Mapping[str, str] = MappingProxyType({})
    arrival: float | None = None
    chat: Sequence[Mapping[str, str]] = ()
    resumed: tuple[Known, ...] = ()

    @property
    def size(self) -> int:
        """Characters or tokens of the prompt."""
        return sum(len(one["content"]) for one in self.chat) or len(self.prompt)
