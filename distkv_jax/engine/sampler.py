"""Choosing a token for each output row of one instance, without a collective."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt32

from distkv_jax.engine.sampler_cut import cut_below
from distkv_jax.engine.sampler_state import ENDS, IN_PROMPT, SamplerState
from distkv_jax.engine.sampling_params import MIN_TEMPERATURE


class RowParams(NamedTuple):
    """What to do with each output row.

    Attributes:
        slot: The sequence's slot; the number of slots in padding rows and in rows with a target.
        position: Index in the sequence of the token to be sampled.
        seed: The sequence's seed, see `seed_words`.
        temperature: Below `MIN_TEMPERATURE` is greedy.
        top_p: 1 keeps all tokens.
        min_p: 0 keeps all tokens.
        presence_penalty: 0 is neutral.
        frequency_penalty: 0 is neutral.
        repetition_penalty: 1 is neutral.
        top_k: 0 or -1 keeps all tokens.
        target: -1 to sample; else nothing is sampled, and this token's log-probability reported.
        ban_stop: The output has fewer than `min_tokens` tokens so far.
        adjust: The slot has something to apply: counts, flags, bias or bad words.
        wants_logprobs: Report log-probabilities.
    """

    slot: Int32[Array, " rows"]
    position: Int32[Array, " rows"]
    seed: UInt32[Array, "rows 2"]
    temperature: Float32[Array, " rows"]
    top_p: Float32[Array, " rows"]
    min_p: Float32[Array, " rows"]
    presence_penalty: Float32[Array, " rows"]
    frequency_penalty: Float32[Array, " rows"]
    repetition_penalty: Float32[Array, " rows"]
    top_k: Int32[Array, " rows"]
    target: Int32[Array, " rows"]
    ban_stop: Bool[Array, " rows"]
    adjust: Bool[Array, " rows"]
    wants_logprobs: Bool[Array, " rows"]


class Sampled(NamedTuple):
    """A token for each output row; zeros in padding rows.

    On the device the rows of one instance; read back, NumPy arrays of all instances' rows.

    Attributes:
        ids: The token sampled, or the target.
        logprob: Its log-probability under the raw logits; zero where not wanted, as all below.
        rank: 1 + the number of tokens with a higher logit.
        top_ids: The most likely tokens, best first.
        top_logprobs: Their log-probabilities.
    """

    ids: Int32[Array | np.ndarray, "*rows"]
    logprob: Float32[Array | np.ndarray, "*rows"]
    rank: Int32[Array | np.ndarray, "*rows"]
    top_ids: Int32[Array | np.ndarray, "*rows max_logprobs"]
    top_logprobs: Float32[Array | np.ndarray, "*rows max_logprobs"]


def seed_words(seed: int, index: int) -> tuple[int, int]:
    """Split the seed of a request's sample into its low and high 32 bits.

    As in vLLM, sample `index` has the seed `seed + index`.
    """
    word = (seed + index) % 2**64
    return word % 2**32, word >> 32


def sample(
    logits: Float32[Array, "rows vocab"],
    state: SamplerState,
    params: RowParams,
    *,
    max_logprobs: int,
) -> Sampled:
    """Choose a token for each row.

    In vLLM's order: ban ends before `min_tokens`, bad words, bias, penalties, then for rows that
    are not greedy temperature, min-p, top-k, top-p and a draw. A row's draw depends on its seed
    and position only: not on its neighbours, its row, the number of rows or the instance. Whatever
    no row asks for is skipped at run time; with greedy rows alone this is an argmax.

    The result is always a token the model has: the first one where all tokens are banned, one of
    the others where logits are NaN.

    Args:
        logits: Of the last hidden states, in float32.
        state: What is remembered of each slot; unchanged.
        params: What to do with each row.
        max_logprobs: Most likely tokens to report, the largest number any request may ask for.
    """
    reports = params.target >= 0
    samples = (params.slot >= 0) & (params.slot < state.num_slots) & ~reports
    adjust = samples & params.adjust
    draw = samples & (params.temperature >= MIN_TEMPERATURE)

    def choose() -> Int32[Array, " rows"]:
        x = lax.cond(
            jnp.any(adjust), lambda: _adjusted(logits, state, params, adjust), lambda: logits
        )
        x = jnp.where(jnp.isnan(x), -jnp.inf, x)
        x = lax.cond(jnp.any(draw), lambda: _perturbed(x, params, draw), lambda: x)
        return _largest(x)

    with jax.named_scope("choose"):
        ids = lax.cond(jnp.any(adjust | draw), choose, lambda: _largest(logits))
        ids = jnp.where(samples, ids, jnp.where(reports, params.target, 0))
    wants = params.wants_logprobs & (samples | reports)
    with jax.named_scope("logprobs"):
        return lax.cond(
            jnp.any(wants),
            lambda: _reported(logits, ids, wants, max_logprobs),
            lambda: _unreported(ids, max_logprobs),
        )


def _largest(x: Float32[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """Find the first largest column of each row, some column where there is a NaN.

    On a CPU XLA's argmax is a slow loop over (value, index) pairs, while its max is vectorised: so
    take the max of each block of columns, and look for the index in one block only.
    """
    rows, vocab = x.shape
    width = math.gcd(vocab, 128)
    blocks = x.reshape(rows, vocab // width, width)
    block_max = jnp.max(blocks, axis=-1)
    row_max = jnp.max(block_max, axis=-1)
    block = _first(block_max, row_max)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1, mode="clip")[:, 0]
    return block * width + _first(inside, row_max)


def _first(
    x: Float32[Array, "rows columns"], value: Float32[Array, " rows"]
) -> Int32[Array, " rows"]:
    """Find the first column of each row that equals its value; the last one if none does."""
    column = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.min(jnp.where(x == value[:, None], column, x.shape[1] - 1), axis=-1)


def _adjusted(
    logits: Float32[Array, "rows vocab"],
    state: SamplerState,
    params: RowParams,
    adjust: Bool[Array, " rows"],
) -> Float32[Array, "rows vocab"]:
    """Apply bans, bias and penalties to the rows that have any."""
    counts, flags, bias, recent, bad_words = (
        table.at[params.slot].get(mode="clip")
        for table in (state.counts, state.flags, state.bias, state.recent, state.bad_words)
    )
    too_early = params.ban_stop[:, None] & ((flags & ENDS) != 0)
    x = jnp.where(too_early, -jnp.inf, logits + bias)
    x = _without_bad_words(x, recent, bad_words)

    in_output = counts > 0
    repeated = in_output | ((flags & IN_PROMPT) != 0)
    penalty = params.repetition_penalty[:, None]
    x = jnp.where(repeated, jnp.where(x > 0, x / penalty, x * penalty), x)
    x = x - params.frequency_penalty[:, None] * counts.astype(jnp.float32)
    x = x - params.presence_penalty[:, None] * in_output.astype(jnp.float32)
    return jnp.where(adjust[:, None], x, logits)


def _without_bad_words(
    x: Float32[Array, "rows vocab"],
    recent: Int[Array, "rows recent_tokens"],
    bad_words: Int[Array, "rows bad_word_forms bad_word_tokens"],
) -> Float32[Array, "rows vocab"]:
    """Ban the last token of each bad word whose other tokens were just sampled."""
    rows, vocab = x.shape
    before, last = bad_words[..., :-1], bad_words[..., -1]
    met = (last >= 0) & jnp.all((before < 0) | (before == recent[:, None]), axis=-1)
    return x.at[jnp.arange(rows)[:, None], jnp.where(met, last, vocab)].set(-jnp.inf, mode="drop")


def _perturbed(
    x: Float32[Array, "rows vocab"], params: RowParams, draw: Bool[Array, " rows"]
) -> Float32[Array, "rows vocab"]:
    """Make the largest column of each row that draws a draw, by the Gumbel-max trick."""
    vocab = x.shape[1]

    def noise_of(seed: UInt32[Array, " 2"], position: Int[Array, ""]) -> Float[Array, " vocab"]:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, position), (vocab,), jnp.float32)

    scaled = x / jnp.where(draw, params.temperature, 1.0)[:, None]
    # Rows that do not draw must not make the others pay for a search.
    cut = cut_below(
        scaled,
        top_k=jnp.where(draw, params.top_k, 0),
        top_p=jnp.where(draw, params.top_p, 1.0),
        min_p=params.min_p,
    )
    noise = jax.vmap(noise_of)(params.seed, params.position)
    drawn = jnp.where(scaled >= cut[:, None], scaled + noise, -jnp.inf)
    return jnp.where(draw[:, None], drawn, x)


def _reported(
    logits: Float32[Array, "rows vocab"],
    ids: Int32[Array, " rows"],
    wants: Bool[Array, " rows"],
    max_logprobs: int,
) -> Sampled:
    """Add log-probabilities to the rows that want them."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, ids[:, None], axis=-1, mode="clip")
    top, top_ids = lax.top_k(logits, max_logprobs)
    return Sampled(
        ids=ids,
        logprob=jnp.where(wants, (chosen - total)[:, 0], 0.0),
        rank=jnp.where(wants, 1 + jnp.sum(logits > chosen, axis=-1, dtype=jnp.int32), 0),
        top_ids=jnp.where(wants[:, None], top_ids, 0),
        top_logprobs=jnp.where(wants[:, None], top - total, 0.0),
    )


def _unreported(ids: Int32[Array, " rows"], max_logprobs: int) -> Sampled:
    """Leave the log-probabilities zero."""
    rows = ids.shape[0]
    return Sampled(
        ids=ids,
        logprob=jnp.zeros(rows, jnp.float32),
        rank=jnp.zeros(rows, jnp.int32),
        top_ids=jnp.zeros((rows, max_logprobs), jnp.int32),
        top_logprobs=jnp.zeros((rows, max_logprobs), jnp.float32),
    )
