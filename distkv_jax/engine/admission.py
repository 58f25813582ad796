"""What a request must be to be taken in: checked once, before anything changes."""

import random
from collections.abc import Container

from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampling_params import (
    SamplingParams,
    check_vocabulary,
    tokenize_bad_words,
)
from distkv_jax.engine.sequence import Sequence, SequenceKey
from distkv_jax.errors import (
    ConfigError,
    DuplicateRequest,
    PromptTooLong,
    QueueFull,
    RequestError,
)
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer


class Admission:
    """Turns requests into sequences, and refuses what can never be served, with the numbers.

    Attributes:
        max_model_len: Positions a sequence may have.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        coordinator: Coordinator,
        tokenizer: Tokenizer | None,
    ) -> None:
        asked = config.max_model_len
        if asked is not None and asked > model.max_model_len:
            raise ConfigError(
                f"max_model_len={asked} must be at most the model's {model.max_model_len}"
            )
        self.max_model_len = model.max_model_len if asked is None else asked
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self.move_to(coordinator)
        self._random = random.Random(config.seed)
        self._num_arrivals = 0

    def move_to(self, coordinator: Coordinator) -> None:
        """Go on with other pools."""
        # Nothing more of it: it refers to the devices.
        self._num_instances = coordinator.num_instances
        self.max_slots = coordinator.max_blocks * self._config.block_size

    def has_room_for(self, sequence: Sequence) -> bool:
        """Whether an empty engine could serve all of a sequence that was taken in before.

        One that may be as long as there is room is as long as there is room now.
        """
        if self._fits_by_window:
            return True
        if sequence.params.max_tokens is None:
            longest = self.max_model_len - sequence.prompt_len
            room = self.max_slots + 1 - sequence.prompt_len
            if room > len(sequence.output_tokens):
                sequence.max_tokens = min(longest, room)
                return True
        return sequence.prompt_len + sequence.max_tokens - 1 <= self.max_slots

    @property
    def _fits_by_window(self) -> bool:
        # Blocks that left the window are free again, two are only partly inside.
        window = self._model.sliding_window
        return window is not None and window + 2 * self._config.block_size <= self.max_slots

    def check(self, request: Request) -> int:
        """Verify that a request could be served by an empty engine.

        Returns:
            Most tokens each of its samples may have.

        Raises:
            PromptTooLong: It needs more positions or blocks than there are.
            RequestError: Something else about it cannot be.
        """
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise RequestError("prompt is empty, must have at least 1 token")
        # First: what follows reads all of it.
        if len(prompt) >= self.max_model_len:
            raise PromptTooLong(
                f"prompt has {len(prompt)} tokens, the model's limit is {self.max_model_len} "
                "with at least 1 generated token",
                given=len(prompt),
                limit=self.max_model_len - 1,
            )
        largest, smallest = max(prompt), min(prompt)
        if smallest < 0 or largest >= self._model.vocab_size:
            bad = smallest if smallest < 0 else largest
            raise RequestError(
                f"prompt has token id {bad}, the model has 0..{self._model.vocab_size - 1}"
            )
        check_vocabulary(params, self._model.vocab_size)
        if params.stop_strings:
            require_tokenizer(self._tokenizer)
        self._bad_words(params)
        most = self._check_slots(request)
        if request.resumed:
            check_known(request, most, self._model.vocab_size)
        return most

    def take_in(
        self, requests: tuple[Request, ...], live: Container[str], waiting: list[Sequence]
    ) -> list[list[Sequence]]:
        """Make the sequences of each request, all or none.

        Args:
            requests: What was asked.
            live: Names of requests that have not ended.
            waiting: The queue; a request waits once, however many of its samples do.

        Raises:
            RequestError: As `check`, or a name is taken.
            QueueFull: Too many would wait.
        """
        names: set[str] = set()
        for request in requests:
            if request.request_id in live or request.request_id in names:
                raise DuplicateRequest(
                    f"request_id {request.request_id!r} is in use by a live request"
                )
            names.add(request.request_id)
        limits = [self.check(request) for request in requests]
        self._check_queue(requests, waiting)
        return [
            self._sequences_of(request, max_tokens)
            for request, max_tokens in zip(requests, limits, strict=True)
        ]

    def _check_queue(self, requests: tuple[Request, ...], waiting: list[Sequence]) -> None:
        # Those that go on were accepted before, running ones too: all at once they may be more.
        requests = tuple(request for request in requests if not request.resumed)
        count, limit = len(requests), self._config.max_num_queued_reqs
        if not count:
            return
        max_tokens = self._config.max_num_queued_tokens
        if max_tokens is None and count + len(waiting) <= limit:
            return
        prompts = {sequence.key.request_id: sequence.prompt_len for sequence in waiting}
        if count + len(prompts) > limit:
            raise QueueFull(f"{count} requests behind {len(prompts)} waiting, limit {limit}")
        if max_tokens is None or not prompts:
            return
        num_new = sum(len(request.prompt_token_ids) for request in requests)
        num_waiting = sum(prompts.values())
        if num_new + num_waiting > max_tokens:
            raise QueueFull(
                f"{num_new} prompt tokens behind {num_waiting} waiting, limit {max_tokens}"
            )

    def _sequences_of(self, request: Request, max_tokens: int) -> list[Sequence]:
        params = request.params
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        by_priority = self._config.scheduling_policy == "priority"
        self._num_arrivals += 1
        bad_words = self._bad_words(params)
        sequences: list[Sequence] = []
        for index in request.open_samples:
            sequences.append(
                Sequence(
                    key=SequenceKey(request.request_id, index),
                    order=(request.priority * by_priority, self._num_arrivals, index),
                    prompt=request.prompt_token_ids,
                    params=params,
                    bad_words=bad_words,
                    max_tokens=max_tokens,
                    stop_ids=self._stop_ids(request),
                    seed=seed,
                    block_size=self._config.block_size,
                    parent=sequences[0] if sequences else None,
                    resumed=request.known[index].token_ids,
                )
            )
        return sequences

    def _check_slots(self, request: Request) -> int:
        """Refuse what the whole mesh could not hold; the last token generated needs no slot."""
        num_prompt, asked = len(request.prompt_token_ids), request.params.max_tokens
        longest = self.max_model_len - num_prompt
        if asked is not None and asked < longest:
            longest = asked
        if self._fits_by_window:
            return longest
        room = self.max_slots + 1 - num_prompt
        if asked is None:
            longest = min(longest, room)
        if longest > room or room < 1:
            instances = self._num_instances
            given = num_prompt + max(longest, 1) - 1
            held = "alone" if instances == 1 or not self._config.pooling else "together"
            raise PromptTooLong(
                f"prompt of {num_prompt} tokens with max_tokens={asked} needs {given} KV slots, "
                f"{instances} instances {held} hold {self.max_slots} for one request",
                given=given,
                limit=self.max_slots,
            )
        return longest

    def _stop_ids(self, request: Request) -> frozenset[int]:
        params = request.params
        ends = () if params.ignore_eos else self._model.eos_token_ids
        # A checkpoint may name end tokens that the model cannot produce.
        known = (token for token in ends if token < self._model.vocab_size)
        return frozenset((*known, *(params.stop_token_ids or ())))

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        if not params.bad_words:
            return ()
        tokenizer = require_tokenizer(self._tokenizer)
        words = tokenize_bad_words(
            params.bad_words, lambda text: tokenizer.encode(text, add_special_tokens=False)
        )
        largest = max(max(tokens) for tokens in words)
        if largest >= self._model.vocab_size:
            raise RequestError(
                f"bad_words have token id {largest}, the model has 0..{self._model.vocab_size - 1}"
            )
        return words


def check_known(request: Request, max_tokens: int, vocab_size: int) -> None:
    """Refuse to go on from what no engine with this model could have given.

    Raises:
        RequestError: Says what it is.
    """
    num_samples = len(request.resumed)
    if num_samples != request.params.n:
        raise RequestError(f"resumed has {num_samples} samples, n={request.params.n}")
    if not request.open_samples:
        raise RequestError(f"resumed has {num_samples} samples, all of which have ended")
    for index, (token_ids, has_ended) in enumerate(request.resumed):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            bad = min(token_ids) if min(token_ids) < 0 else max(token_ids)
            raise RequestError(
                f"resumed sample {index} has token id {bad}, the model has 0..{vocab_size - 1}"
            )
        if not has_ended and len(token_ids) >= max_tokens:
            raise RequestError(
                f"resumed sample {index} has {len(token_ids)} tokens and has not ended, "
                f"limit {max_tokens}"
            )
