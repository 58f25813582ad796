"""A decoder with plain dense attention: for training, and as the reference of tests."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distkv_jax.models.decoder import Decoder


def dense_logits(model: Decoder, token_ids: Int[Array, " tokens"]) -> Float[Array, "tokens vocab"]:
    """Score the next token after every token of one sequence, in float32.

    Differentiable in the model's parameters; `jax.vmap` it for a batch. Memory grows with
    the square of the sequence, as no cache and no blocks are involved.

    Args:
        model: The decoder; its sliding window is respected.
        token_ids: One sequence from position 0, without padding.
    """
    (tokens,) = token_ids.shape
    positions = jnp.arange(tokens)
    distance = positions[:, None] - positions[None, :]
    window = model.config.sliding_window or tokens
    is_visible = (distance >= 0) & (distance < window)
    rotary = model.rotary(positions)
    x = model.embed(token_ids)
    for layer in model.layers:
        k, v = layer.kv(x, rotary)
        x = layer.finish(x, _attend(layer.q(x, rotary), k, v, is_visible))
    return model.logits(x)


def _attend(
    q: Float[Array, "tokens q_heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    is_visible: Bool[Array, "tokens tokens"],
) -> Float[Array, "tokens q_heads head_dim"]:
    tokens, q_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(tokens, kv_heads, q_heads // kv_heads, head_dim)
    scores = jnp.einsum("qkgd,tkd->kgqt", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(is_visible[None, None], scores * head_dim**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("kgqt,tkd->qkgd", weights, v).reshape(q.shape)
