"""What the engine is asked to do: a prompt, how to sample, and until when."""

import dataclasses
import time

from distkv_jax.engine.sampling_params import SamplingParams


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
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    prompt: str | None = None
    priority: int = 0
    deadline: float | None = None
    arrival: float = dataclasses.field(default_factory=time.monotonic)
