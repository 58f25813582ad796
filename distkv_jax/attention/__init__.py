"""Exact attention over KV blocks that live anywhere on a device mesh."""

from distkv_jax.attention.choose import AttentionCall, choose_implementation
from distkv_jax.attention.dist_attention import BlockLists, TileClass, dist_attention
from distkv_jax.attention.host_copy import read_blocks, write_blocks
from distkv_jax.attention.move import move_blocks
from distkv_jax.attention.write import write_kv

__all__ = [
    "AttentionCall",
    "BlockLists",
    "TileClass",
    "choose_implementation",
    "dist_attention",
    "move_blocks",
    "read_blocks",
    "write_blocks",
    "write_kv",
]
