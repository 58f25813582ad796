"""Clients that ask without a pause, and compare every token with what one process gives."""

import collections
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from distkv_jax import LLM
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DistKVError, QueueFull, RequestCancelled, RequestNotFound, Unavailable
from serve.client import Client

LONGEST = 300
"""Tokens of the longest prompt."""
RPC_S = 180.0
"""An RPC that takes longer has been forgotten."""
RETRY_S = 0.5

Tokens = list[list[int]]
"""Of each sample of a request."""


class Case(NamedTuple):
    """A request, and what must come of it.

    Attributes:
        prompt: Token ids.
        params: Greedy or seeded, so that there is one right answer.
        expected: The right answer.
    """

    prompt: list[int]
    params: SamplingParams
    expected: Tokens


def make_cases(model: str, count: int, seed: int, num_blocks: int) -> list[Case]:
    """Draw requests, and have one process with one device answer them."""
    draw = random.Random(seed)
    asked: list[tuple[list[int], SamplingParams]] = []
    with LLM(model, mesh="cpu-1", block_size=16, num_blocks=num_blocks, max_num_seqs=8) as llm:
        vocab = llm.model_config.vocab_size
        for number in range(count):
            length = draw.choice((3, 20, 60, 150, LONGEST))
            kind = number % 3
            params = SamplingParams(
                temperature=0.0 if kind == 0 else 1.0,
                seed=None if kind == 0 else number,
                n=2 if number % 6 == 5 else 1,
                presence_penalty=0.5 if number % 4 == 1 else 0.0,
                max_tokens=draw.choice((8, 40, 80)),
                ignore_eos=True,
            )
            asked.append(([draw.randrange(vocab) for _ in range(length)], params))
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in asked]
        outputs = llm.generate(prompts, [params for _, params in asked], use_tqdm=False)
    answers = [[list(one.token_ids) for one in output.outputs] for output in outputs]
    return [Case(*one, answer) for one, answer in zip(asked, answers, strict=True)]


class Load:
    """Threads that stream, wait for whole answers, and leave early, until they are stopped.

    Attributes:
        ends: How RPCs ended, counted.
        times: `time.monotonic()` of every piece with tokens.
        wrong: What came where something else should, in words.
    """

    def __init__(
        self, address: str, cases: Sequence[Case], *, num_clients: int, seed: int, durable: bool
    ) -> None:
        """Begin to ask."""
        self.ends: collections.Counter[str] = collections.Counter()
        self.times: list[float] = []
        self.wrong: list[str] = []
        self._address = address
        self._cases = cases
        self._durable = durable
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(random.Random(f"{seed} {at}"),))
            for at in range(num_clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """Ask no more, and wait for what is under way; gives the number of RPCs that never end."""
        self._is_over.set()
        deadline = time.monotonic() + RPC_S + 10
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _ask_on(self, draw: random.Random) -> None:
        with Client(self._address, max_retries=0, timeout_s=RPC_S, reattach_s=RPC_S) as client:
            while not self._is_over.is_set():
                self._count(self._ask(client, draw))

    def _count(self, end: str) -> None:
        with self._lock:
            self.ends[end] += 1
        if end == "refused":
            # It was not accepted: the service is full, or not there.
            self._is_over.wait(RETRY_S)

    def _ask(self, client: Client, draw: random.Random) -> str:
        case = draw.choice(self._cases)
        leaves_after = draw.randrange(1, 6) if draw.random() < 0.15 else None
        name = f"chaos-{next(self._names)}"
        found: Tokens = []
        has_begun = False
        try:
            if leaves_after is None and draw.random() < 0.3:
                output = client.generate(
                    case.prompt, case.params, request_id=name, **self._durability
                )
                found = [list(one.token_ids) for one in output.outputs]
            else:
                stream = client.stream(
                    case.prompt, case.params, request_id=name, **self._durability
                )
                for pieces, output in enumerate(stream, 1):
                    has_begun = True
                    self.times.append(time.monotonic())
                    found = [list(one.token_ids) for one in output.outputs]
                    if pieces == leaves_after:
                        stream.close()
                        if self._durable:
                            # It would go on without its client.
                            with contextlib.suppress(RequestNotFound):
                                client.abort(name)
                        break
        except (QueueFull, Unavailable) as error:
            if not has_begun:
                return "refused"
            return self._lost(name, error)
        except RequestCancelled:
            return "left"
        except DistKVError as error:
            return self._lost(name, error)
        has_left = leaves_after is not None
        if not is_right(found, case.expected, is_whole=not has_left):
            self.wrong.append(f"{name}: {found}, not {case.expected}")
            return "wrong"
        return "left" if has_left else "right"

    @property
    def _durability(self) -> dict[str, bool]:
        return {"durable": True} if self._durable else {}

    def _lost(self, name: str, error: Exception) -> str:
        self.wrong.append(f"{name}: {type(error).__name__}: {error}")
        return "lost"


def is_right(found: Tokens, expected: Tokens, *, is_whole: bool) -> bool:
    """Whether tokens are those expected, or their beginning where a client has left."""
    if is_whole:
        return found == expected
    return all(one == right[: len(one)] for one, right in zip(found, expected, strict=False))
