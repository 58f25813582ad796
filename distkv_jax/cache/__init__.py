"""The coordinator: where every KV block lives, and who is charged for it."""

from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator, Usage

__all__ = ["Coordinator", "Place", "Usage"]
