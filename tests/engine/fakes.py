"""An engine whose devices are a formula, and a tokenizer whose tokens are bytes."""

from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.engine.admission import Admission
from distkv_jax.engine.collector import Collector
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.encode import Encoded, Encoder
from distkv_jax.engine.engine import Engine
from distkv_jax.engine.moves import Copy
from distkv_jax.engine.parts import Parts, Renewal
from distkv_jax.engine.placer import Placer
from distkv_jax.engine.pressure import Pressure
from distkv_jax.engine.rebalance import Rebalancer
from distkv_jax.engine.request import Request
from distkv_jax.engine.runner import InFlight, Runner
from distkv_jax.engine.sampler import Sampled
from distkv_jax.engine.sampler_state import SlotRow
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.engine.scheduler import Scheduler
from distkv_jax.engine.shapes import shape_table
from distkv_jax.errors import StepFailed
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.tokenizer import Tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = len(BYTES)
VOCAB = EOS + 1


def byte_tokenizer() -> Tokenizer:
    """Make a tokenizer with a token for each byte, and an end token."""
    inner = tokenizers.Tokenizer(models.BPE({text: id_ for id_, text in enumerate(BYTES)}, []))
    inner.add_special_tokens(["</s>"])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, {"eos_token": "</s>"})


def model_config(**changed: Any) -> ModelConfig:
    """Describe a model with a token for each byte; nothing else of it matters here."""
    settings: dict[str, Any] = dict(
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        q_heads=4,
        kv_heads=2,
        head_dim=4,
        max_model_len=100,
        eos_token_ids=(EOS,),
    )
    return ModelConfig(**(settings | changed))


def make_request(
    prompt: int | tuple[int, ...] = 5,
    name: str = "request",
    *,
    priority: int = 0,
    deadline: float | None = None,
    **params: Any,
) -> Request:
    """Make a request; a number is a prompt of as many tokens."""
    token_ids = tuple(range(prompt)) if isinstance(prompt, int) else prompt
    return Request(
        request_id=name,
        prompt_token_ids=token_ids,
        params=SamplingParams(**params),
        priority=priority,
        deadline=deadline,
    )


def token_at(prompt_len: int, position: int) -> int:
    """The token that `FakeRunner` samples for a position."""
    return (7 * prompt_len + position) % EOS


class FakeRunner(Runner):
    """Samples by `token_at`; remembers what it was told.

    Attributes:
        fail: The next dispatches fail while it is above 0.
        slots: Slots that were set.
        num_resets: How often pools were let go.
        num_moved: Blocks copied.
    """

    def __init__(self, num_instances: int) -> None:
        self._num_instances = num_instances
        self._world = self.host_memory = None
        self.vocab_size = VOCAB
        self.fail = 0
        self.slots: list[int] = []
        self.num_resets = 0
        self.num_moved = 0

    @property
    def num_instances(self) -> int:
        return self._num_instances

    def reset(self) -> None:
        self.num_resets += 1

    def set_slot(self, slot: int, row: SlotRow) -> None:
        self.slots.append(slot)

    def move(self, copies: Several[Copy]) -> None:
        self.num_moved += len(copies)

    def dispatch(self, encoded: Encoded) -> InFlight:
        if self.fail:
            self.fail -= 1
            raise StepFailed("a device burnt down")
        ids = np.zeros((self.num_instances, encoded.shape.output_rows), np.int32)
        for row in encoded.expected:
            if row.is_sample:
                ids[row.instance, row.row] = token_at(row.sequence.prompt_len, row.position)
        return InFlight(encoded, ids, make_sampled(ids))  # pyright: ignore[reportArgumentType]

    def read(self, step: InFlight) -> tuple[np.ndarray, Sampled | None]:
        return np.asarray(step.ids), step.sampled


def make_sampled(ids: np.ndarray, count: int = 3) -> Sampled:
    """Report that token 0 is the most likely, then 1 and so on, and the chosen one the last."""
    top = np.broadcast_to(np.arange(count, dtype=np.int32), (*ids.shape, count))
    return Sampled(  # pyright: ignore[reportCallIssue]
        ids=ids,  # pyright: ignore[reportArgumentType]
        logprob=np.full(ids.shape, -9.0, np.float32),  # pyright: ignore[reportArgumentType]
        rank=np.full(ids.shape, 10, np.int32),  # pyright: ignore[reportArgumentType]
        top_ids=top,  # pyright: ignore[reportArgumentType]
        top_logprobs=-top.astype(np.float32),  # pyright: ignore[reportArgumentType]
    )


def make_admission(
    *,
    num_instances: int = 2,
    num_blocks: int = 4,
    tokenizer: Tokenizer | None = None,
    model: ModelConfig | None = None,
    **settings: Any,
) -> Admission:
    """Make an admission over empty pools with blocks of 4 tokens."""
    config = EngineConfig(block_size=4, num_blocks=num_blocks, **settings)
    coordinator = Coordinator(
        num_instances, num_blocks, lend_cap=config.lend_cap, pooling=config.pooling
    )
    return Admission(config, model or model_config(), coordinator, tokenizer)


def make_config(**settings: Any) -> EngineConfig:
    """Settings of a small engine."""
    sizes: dict[str, Any] = dict(block_size=4, max_num_seqs=4, max_num_batched_tokens=8)
    return EngineConfig(**(sizes | settings))


def make_parts(config: EngineConfig, num_instances: int) -> Parts:
    """Make the real parts over a `FakeRunner`."""
    num_blocks = config.num_blocks
    assert num_blocks is not None
    coordinator = Coordinator(num_instances, num_blocks)
    shapes = shape_table(config, num_instances, num_blocks)
    placer = Placer(
        coordinator,
        num_instances=num_instances,
        policy="home",
        spread_tokens=8,
        step_tokens=8 * num_instances,
        seed=0,
    )
    pressure = Pressure(coordinator, patience=config.plan_period)
    runner = FakeRunner(num_instances)
    return Parts(
        runner=runner,
        coordinator=coordinator,
        scheduler=Scheduler(
            coordinator, placer, shapes, pressure, num_slots=config.max_num_seqs, window=None
        ),
        encoder=Encoder(
            shapes,
            num_blocks=num_blocks,
            block_size=config.block_size,
            num_slots=config.max_num_seqs,
            window=None,
        ),
        rebalancer=Rebalancer(
            coordinator,
            runner,
            pressure,
            block_size=config.block_size,
            tokens_per_step=config.move_tokens_per_step,
            period=config.plan_period,
            planner=None,
        ),
        step_model=None,
    )


def make_engine(
    *,
    num_instances: int = 2,
    num_blocks: int = 4,
    max_step_failures: int = 3,
    renewal: Renewal | None = None,
    **settings: Any,
) -> Engine:
    """Make an engine of the real parts over a `FakeRunner`."""
    config = make_config(num_blocks=num_blocks, **settings)
    parts = make_parts(config, num_instances)
    return Engine(
        parts,
        admission=Admission(config, model_config(), parts.coordinator, byte_tokenizer()),
        collector=Collector(byte_tokenizer()),
        max_step_failures=max_step_failures,
        renewal=renewal,
    )
