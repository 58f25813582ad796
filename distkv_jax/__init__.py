"""LLM serving on a JAX device mesh whose instances pool their KV caches."""

from typing import TYPE_CHECKING

from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.outputs import CompletionOutput, Logprob, RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import (
    ConfigError,
    DistKVError,
    EngineStopped,
    InvariantError,
    OutOfBlocks,
    PromptTooLong,
    QueueFull,
    RequestError,
)

if TYPE_CHECKING:
    from distkv_jax.llm import LLM

__all__ = [
    "CompletionOutput",
    "ConfigError",
    "DistKVError",
    "EngineConfig",
    "EngineStopped",
    "InvariantError",
    "LLM",
    "Logprob",
    "OutOfBlocks",
    "PromptTooLong",
    "QueueFull",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `LLM` when it is first asked for: it brings JAX, which `distkv --help` can spare."""
    if name == "LLM":
        from distkv_jax.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
