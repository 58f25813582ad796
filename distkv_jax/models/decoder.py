"""The decoder's projections as flax.nnx modules named as in Hugging Face checkpoints.

Attention itself is not here: whoever drives the layers asks each one for q, k and v,
attends over wherever the keys are, and hands the result to `finish`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from distkv_jax.models import initial
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.linear import Linear
from distkv_jax.models.rope import inverse_frequencies
from distkv_jax.models.rotary import Rotary, rotary_of, rotate


class RMSNorm(nnx.Module):
    """Scale rows to unit mean square, with statistics in float32."""

    def __init__(self, size: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        self.weight = initial.constant(1.0, (size,), dtype, rngs)
        self.eps = eps

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        """Normalise the last axis; rounded to x's dtype before it is weighted."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = jnp.expand_dims(self.weight[...], tuple(range(x.ndim - 1)))
        return (wide * scale).astype(x.dtype) * weight


class Embedding(nnx.Module):
    """The table of token vectors; also the output projection where embeddings are tied."""

    def __init__(self, vocab: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        self.weight = initial.normal((vocab, hidden), dtype, rngs)

    def __call__(self, token_ids: Int[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        """Look tokens up; a row with an id out of range is padding and gets some vector."""
        return jnp.take(self.weight[...], token_ids, axis=0, mode="clip")

    def attend(self, x: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """Compute every token's score in float32."""
        weight = self.weight[...]
        if weight.dtype == jnp.float32:
            # In this order XLA:CPU reads a float32 table at twice the speed of x @ weight.T.
            return jnp.matmul(weight, x.T, preferred_element_type=jnp.float32).T
        return jnp.matmul(x, weight.T, preferred_element_type=jnp.float32)


class Attention(nnx.Module):
    """The four projections around attention, and the head norms where there are some."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        q_width = config.q_heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(hidden, q_width, bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(hidden, kv_width, bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(hidden, kv_width, bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(q_width, hidden, bias=config.o_bias, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)
            self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)


class MLP(nnx.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        hidden, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, wide, bias=bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(hidden, wide, bias=bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(wide, hidden, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        """Compute down(silu(gate(x)) * up(x))."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """One layer, in three parts: q, kv and what follows attention.

    q and kv each normalise their own rows, since the last layer computes queries for
    fewer rows than keys; where the rows are the same the compiler does it once.
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.head_dim = config.head_dim
        self.qk_norm = config.qk_norm
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.input_layernorm = RMSNorm(hidden, eps=eps, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(hidden, eps=eps, dtype=dtype, rngs=rngs)

    def q(
        self, x: Float[Array, "tokens hidden"], rotary: Rotary
    ) -> Float[Array, "tokens q_heads head_dim"]:
        """Project the rows of the residual stream to rotated queries, not yet scaled."""
        attention = self.self_attn
        q = self._heads(attention.q_proj(self.input_layernorm(x)))
        return rotate(attention.q_norm(q) if self.qk_norm else q, rotary)

    def kv(
        self, x: Float[Array, "tokens hidden"], rotary: Rotary
    ) -> tuple[Float[Array, "tokens kv_heads head_dim"], Float[Array, "tokens kv_heads head_dim"]]:
        """Project the rows of the residual stream to rotated keys, and to values."""
        attention = self.self_attn
        normed = self.input_layernorm(x)
        k = self._heads(attention.k_proj(normed))
        v = self._heads(attention.v_proj(normed))
        return rotate(attention.k_norm(k) if self.qk_norm else k, rotary), v

    def finish(
        self,
        x: Float[Array, "tokens hidden"],
        attended: Float[Array, "tokens q_heads head_dim"],
    ) -> Float[Array, "tokens hidden"]:
        """Add the attention's output and the MLP's to the residual stream `x`."""
        tokens, q_heads, head_dim = attended.shape
        flat = attended.reshape(tokens, q_heads * head_dim)
        x = x + self.self_attn.o_proj(flat)
        return x + self.mlp(self.post_attention_layernorm(x))

    def _heads(self, flat: Float[Array, "tokens width"]) -> Float[Array, "tokens heads head_dim"]:
        tokens, width = flat.shape
        return flat.reshape(tokens, width // self.head_dim, self.head_dim)


class Decoder(nnx.Module):
    """A decoder-only language model without its attention.

    Parameter paths are the checkpoint's names: `layers.0.mlp.up_proj.kernel` here is
    `model.layers.0.mlp.up_proj.weight` there (see `weight_names.py`). Without `rngs` there
    are no numbers, only shapes.
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        if not config.tie_embeddings:
            self.lm_head = Linear(
                config.hidden_size, config.vocab_size, bias=False, dtype=dtype, rngs=rngs
            )

    def embed(self, token_ids: Int[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        """Start the residual stream."""
        return self.embed_tokens(token_ids)

    def rotary(self, positions: Int[Array, " tokens"]) -> Rotary:
        """Compute the rotations of a step, once for all layers, in float32."""
        config, scaling = self.config, self.config.rope_scaling
        inverse = inverse_frequencies(config.head_dim, config.rope_theta, scaling)
        return rotary_of(positions, inverse, 1.0 if scaling is None else scaling.attention_factor)

    def logits(self, x: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """Normalise the rows that are asked for, and score every token in float32."""
        normed = self.norm(x)
        if self.config.tie_embeddings:
            return self.embed_tokens.attend(normed)
        return self.lm_head(normed, out_dtype=jnp.float32)
