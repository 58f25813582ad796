"""What the engine is asked to do: a prompt, how to sample, and until when."""

import dataclasses
import time
from typing import NamedTuple

from distkv_jax.engine.sampling_params import SamplingParams


class Known(NamedTuple):
    """What a sample had given when the engine that ran it was lost.

    Attributes:
        token_ids: In their order; they are not given again.
        has_ended: Whether it has all it will get.
    """

    token_ids: tuple[int, ...] = ()
    has_ended: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt of token ids with everything needed to serve it; nothing of a wire or a device.

    Attributes:
        request_id: Unique among live requests.
        prompt_token_ids: At least one.
        params: How to sample.
        prompt: The text the ids came from, if there was one.
        priority: Lower runs first under the scheduling policy "priority".
        deadline: `time.monotonic()` after which it ends, queued or running; None for never.
        arrival: `time.monotonic()` when it came.
        resumed: What each sample gave in an engine before, from which this one goes on as if it had
            given it itself; empty for a new request. It was accepted once, so no queue refuses it.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    prompt: str | None = None
    priority: int = 0
    deadline: float | None = None
    arrival: float = dataclasses.field(default_factory=time.monotonic)
    resumed: tuple[Known, ...] = ()

    @property
    def known(self) -> tuple[Known, ...]:
        """What each sample has already."""
        return self.resumed or (Known(),) * self.params.n

    @property
    def open_samples(self) -> tuple[int, ...]:
        """Which samples are still to be generated."""
        return tuple(index for index, one in enumerate(self.known) if not one.has_ended)
