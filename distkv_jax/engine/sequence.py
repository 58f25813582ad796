"""One run of tokens being generated, from waiting to its single end."""

import enum
from typing import NamedTuple

from distkv_jax.engine.block_table import BlockTable
from distkv_jax.engine.outputs import PositionLogprobs
from distkv_jax.engine.sampler import seed_words
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import InvariantError


class SequenceKey(NamedTuple):
    """A sequence's name: its request, and which of the request's samples it is."""

    request_id: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index: unused here)


class State(enum.Enum):
    """Where a sequence is; it ends once."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"  # its blocks are gone, its token in flight is still to be read
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class Sequence:
    """Tokens known so far, and how far the device is with them.

    `num_computed` counts tokens whose K and V are written or in flight; `num_pending` tokens that
    are sampled but not read yet: the host runs one step behind. The engine thread owns it.

    Invariant: num_computed < num_tokens, and num_computed <= table.capacity.
    """

    def __init__(
        self,
        *,
        key: SequenceKey,
        order: tuple[int, int, int],
        prompt: tuple[int, ...],
        params: SamplingParams,
        bad_words: tuple[tuple[int, ...], ...],
        max_tokens: int,
        stop_ids: frozenset[int],
        seed: int,
        block_size: int,
        parent: "Sequence | None",
        resumed: tuple[int, ...] = (),
    ) -> None:
        self.key = key
        self.order = order
        self.prompt_len = len(prompt)
        self.tokens = [*prompt, *resumed]
        self.params = params
        self.bad_words = bad_words
        self.max_tokens = max_tokens
        self.stop_ids = stop_ids
        self.seed_words = seed_words(seed, key.index)
        self.parent = parent
        self.table = BlockTable(block_size)
        self.state = State.WAITING
        self.home = -1
        self.slot = -1
        self.scheduled: float | None = None
        self.num_computed = 0
        self.num_pending = 0
        self.prompt_logprobs: list[PositionLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.instances_used: set[int] = set()
        self.max_remote_tokens = 0
        self.num_shared_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens there are, those not read yet included."""
        return len(self.tokens) + self.num_pending

    @property
    def output_tokens(self) -> list[int]:
        """Generated tokens that were read."""
        return self.tokens[self.prompt_len :]

    @property
    def num_left(self) -> int:
        """Tokens whose K and V are still to be computed before the next can be sampled."""
        return self.num_tokens - self.num_computed

    @property
    def is_sampled_out(self) -> bool:
        """Whether its last allowed token has been sampled, read or not."""
        return self.num_tokens - self.prompt_len >= self.max_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt positions are still to be scored (the first sample does it for all)."""
        wanted = self.params.prompt_logprobs is not None and self.key.index == 0
        return wanted and len(self.prompt_logprobs) < self.prompt_len - 1

    def restart(self) -> None:
        """Forget everything on the device; the known tokens are prefilled again."""
        self.table = BlockTable(self.table.block_size)
        self.num_computed = 0
        self.home = self.slot = -1

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End it.

        Raises:
            InvariantError: It had ended before.
        """
        if self.state is State.FINISHED:
            raise InvariantError(f"{self.key} ended twice: {self.finish_reason}, then {reason}")
        self.state = State.FINISHED
        self.finish_reason = reason
        self.stop_reason = stop_reason
