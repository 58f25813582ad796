"""The coordinator: where every KV block lives, and who is charged for it."""

from distkv_jax.cache.block import Place
from distkv_jax.cache.coordinator import Coordinator
from distkv_jax.cache.messages import MoveKVCache
from distkv_jax.cache.mover import Transfer, by_sequence
from distkv_jax.cache.usage import Usage

__all__ = ["Coordinator", "MoveKVCache", "Place", "Transfer", "Usage", "by_sequence"]
