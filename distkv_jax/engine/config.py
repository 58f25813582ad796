"""How an engine is sized and how it places blocks."""

import dataclasses
from typing import Literal, get_args, no_type_check

from distkv_jax.errors import ConfigError

Placement = Literal["home", "round_robin", "random"]
"""Where new blocks go: at home and then borrowed, over all instances in turn, or anywhere."""

KVDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
"""Of keys and values in the pools: a dtype, or what suits weights and platform."""

SchedulingPolicy = Literal["fcfs", "priority"]
"""The order of waiting requests: by arrival, or by priority and then arrival."""


# Run-time type checks would refuse a wrong type before `__post_init__` can name what is allowed.
@no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes and policies of an engine; the names are vLLM's where it has them.

    Attributes:
        block_size: Tokens of a block; a power of two.
        num_blocks: Blocks of each instance's pool; None sizes the pool from device memory.
        kv_cache_dtype: Of keys and values; `auto` is that of the weights, on CPU float32. `int8`
            and `fp8` (e4m3) have a float32 scale per token, KV head and K or V.
        host_blocks: Blocks of host memory for each instance, which keep what preempted sequences
            had; 0 for none: they are computed again.
        device_memory_fraction: Share of device memory for weights, pools and temporaries together.
        max_model_len: Positions a sequence may have; None takes the model's.
        max_num_seqs: Sequences that run at once, over the whole mesh.
        max_num_batched_tokens: Prompt tokens each instance computes in a step, rounded up to whole
            tiles of 64; `LLM` takes 128 on a mesh of simulated instances.
        max_num_queued_reqs: Requests that may wait; more are refused.
        max_num_queued_tokens: Prompt tokens that may wait; None for any number. A request that
            finds nobody waiting is taken in however long it is.
        pooling: Whether a sequence may have blocks on other instances than its home.
        lend_cap: Blocks an instance lends at most; None for all of them.
        placement: Where new blocks go.
        spread_tokens: Prompts longer than this are spread over instances even when home could hold
            them; None takes `max_num_batched_tokens`.
        move_tokens_per_step: Tokens of KV that may move between instances with each step; unused
            ones add up for a while. 0 moves only what a sequence could not go on without.
        plan_period: Steps between two looks at who should hold what.
        planner: Whether blocks are moved to make steps faster; debts in circles are called home and
            loans recalled either way.
        step_profile: File with a profile of this machine's steps, for the planner; where there is
            none yet, what is measured at start is written there. None measures at every start.
        explain_placement: Print what each plan proposes to move, from whom to whom, and the gain.
        scheduling_policy: Order of the queue.
        seed: Seed of sequences that name none, and of random placement.
        warm_up: Compile every program at start; without, each compiles when first needed.
        max_step_failures: Consecutive failed steps a request survives.
        micro_attention: Name of the MicroAttention implementation; None for the platform's best.
    """

    block_size: int = 64
    num_blocks: int | None = None
    kv_cache_dtype: KVDtype = "auto"
    host_blocks: int = 0
    device_memory_fraction: float = 0.9
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_num_queued_reqs: int = 65536
    max_num_queued_tokens: int | None = None
    pooling: bool = True
    lend_cap: int | None = None
    placement: Placement = "home"
    spread_tokens: int | None = None
    move_tokens_per_step: int = 16
    plan_period: int = 32
    planner: bool = True
    step_profile: str | None = None
    explain_placement: bool = False
    scheduling_policy: SchedulingPolicy = "fcfs"
    seed: int = 0
    warm_up: bool = True
    max_step_failures: int = 3
    micro_attention: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), field.default
            kind = int if default is None else type(default)
            if field.name in ("micro_attention", "step_profile"):
                kind = str
            is_number = kind is float and type(value) is int
            if (
                type(value) is not kind
                and not is_number
                and (default is not None or value is not None)
            ):
                raise ConfigError(f"{field.name}={value!r} must be of type {kind.__name__}")
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size={self.block_size} must be a power of two")
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_queued_reqs",
            "plan_period",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_blocks", "max_model_len", "max_num_queued_tokens", "spread_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1 or None")
        for name in ("host_blocks", "max_step_failures", "move_tokens_per_step"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        if self.lend_cap is not None and self.lend_cap < 0:
            raise ConfigError(f"lend_cap={self.lend_cap} must be at least 0 or None")
        if not 0 < self.device_memory_fraction <= 1:
            raise ConfigError(
                f"device_memory_fraction={self.device_memory_fraction} must be within (0, 1]"
            )
        for name, allowed in (
            ("placement", get_args(Placement)),
            ("kv_cache_dtype", get_args(KVDtype)),
            ("scheduling_policy", get_args(SchedulingPolicy)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )

    @property
    def tile(self) -> int:
        """Tokens of a prefill tile."""
        return min(64, self.max_num_batched_tokens)

    @property
    def prefill_tiles(self) -> int:
        """Prefill tiles of an instance in a step."""
        return -(-self.max_num_batched_tokens // self.tile)
