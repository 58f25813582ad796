"""What the sampler remembers of each sequence, by slot, equal on every instance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, UInt8

from distkv_jax.engine.sampling_params import BAD_WORD_FORMS, BAD_WORD_TOKENS, SamplingParams

IN_PROMPT = 1
"""Bit of `SamplerState.flags`: the token is in the prompt."""
ENDS = 2
"""Bit of `SamplerState.flags`: the token would end the sequence."""
NO_TOKEN = -1


class SamplerState(NamedTuple):
    """What the sampler remembers of each slot.

    Only `last_token` is meaningful for a slot whose sequence needs no adjustments: the others are
    then what earlier sequences left.

    Attributes:
        last_token: The token sampled last, the input of the sequence's next decode step.
        recent: The output's last tokens, newest last; -1 where there is none.
        counts: How often each token is in the output.
        flags: `IN_PROMPT` and `ENDS` of each token.
        bias: Added to the logits; -inf bans the token.
        bad_words: Token lists whose last token is banned after the others, right-aligned, padded
            on the left with -1; all -1 where there is none.
    """

    last_token: Int32[Array, " slots"]
    recent: Int32[Array, "slots recent_tokens"]
    counts: Int32[Array, "slots vocab"]
    flags: UInt8[Array, "slots vocab"]
    bias: Float32[Array, "slots vocab"]
    bad_words: Int32[Array, "slots bad_word_forms bad_word_tokens"]

    @property
    def num_slots(self) -> int:
        """Slots there are; as an index it names none of them."""
        return self.last_token.shape[0]


class SlotRow(NamedTuple):
    """One slot of a `SamplerState`, built on the host."""

    last_token: Int32[np.ndarray, ""]
    recent: Int32[np.ndarray, " recent_tokens"]
    counts: Int32[np.ndarray, " vocab"]
    flags: UInt8[np.ndarray, " vocab"]
    bias: Float32[np.ndarray, " vocab"]
    bad_words: Int32[np.ndarray, "bad_word_forms bad_word_tokens"]


def empty_state(slots: int, vocab: int) -> SamplerState:
    """Build the state of slots that no sequence has used."""
    return SamplerState(
        last_token=jnp.zeros(slots, jnp.int32),
        recent=jnp.full((slots, BAD_WORD_TOKENS - 1), NO_TOKEN, jnp.int32),
        counts=jnp.zeros((slots, vocab), jnp.int32),
        flags=jnp.zeros((slots, vocab), jnp.uint8),
        bias=jnp.zeros((slots, vocab), jnp.float32),
        bad_words=jnp.full((slots, BAD_WORD_FORMS, BAD_WORD_TOKENS), NO_TOKEN, jnp.int32),
    )


def empty_row(vocab: int) -> SlotRow:
    """Build what `empty_state` has in each slot, on the host."""
    return SlotRow(
        last_token=np.zeros((), np.int32),
        recent=np.full(BAD_WORD_TOKENS - 1, NO_TOKEN, np.int32),
        counts=np.zeros(vocab, np.int32),
        flags=np.zeros(vocab, np.uint8),
        bias=np.zeros(vocab, np.float32),
        bad_words=np.full((BAD_WORD_FORMS, BAD_WORD_TOKENS), NO_TOKEN, np.int32),
    )


def state_bytes(slots: int, vocab: int) -> int:
    """Size the state: bytes on each device, about 9 for each slot and token of the vocabulary."""
    leaves = jax.eval_shape(lambda: empty_state(slots, vocab))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def slot_row(
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    stop_ids: Sequence[int],
    vocab: int,
    bad_words: Sequence[Sequence[int]] = (),
) -> SlotRow:
    """Build what a sequence's slot must hold, as if its output had been sampled in that slot.

    Args:
        params: What the request asks for.
        prompt_ids: Tokens of the prompt.
        output_ids: Tokens sampled so far: none at first, all of them after a preemption.
        stop_ids: Tokens that end the sequence, the model's and the request's.
        vocab: Tokens the model has; every id is below it.
        bad_words: Token lists of `tokenize_bad_words`.
    """
    output = np.asarray(output_ids, np.int32)
    last = np.int32(output[-1] if output.size else 0)
    kept = output[-(BAD_WORD_TOKENS - 1) :]
    recent = np.full(BAD_WORD_TOKENS - 1, NO_TOKEN, np.int32)
    recent[recent.size - kept.size :] = kept

    flags = np.zeros(vocab, np.uint8)
    flags[np.asarray(prompt_ids, np.int32)] |= IN_PROMPT
    flags[np.asarray(stop_ids, np.int32)] |= ENDS

    bias = np.zeros(vocab, np.float32)
    for token, value in (params.logit_bias or {}).items():
        bias[token] = value
    if params.allowed_token_ids is not None:
        banned = np.ones(vocab, bool)
        banned[np.asarray(params.allowed_token_ids, np.int32)] = False
        bias[banned] = -np.inf

    table = np.full((BAD_WORD_FORMS, BAD_WORD_TOKENS), NO_TOKEN, np.int32)
    for form, tokens in enumerate(bad_words):
        if len(tokens) == 1:
            bias[tokens[0]] = -np.inf
        else:
            table[form, BAD_WORD_TOKENS - len(tokens) :] = tokens

    return SlotRow(
        last_token=np.asarray(last),
        recent=recent,
        counts=np.bincount(output, minlength=vocab).astype(np.int32),
        flags=flags,
        bias=bias,
        bad_words=table,
    )


def set_slot(state: SamplerState, slot: int | Int[Array, ""], row: SlotRow) -> SamplerState:
    """Put a sequence into a slot. Donate `state`, the result replaces it.

    Needed before the first token of a sequence with `SamplingParams.adjusts_logits` is sampled,
    and when it comes back after a preemption.
    """
    return SamplerState(
        *(old.at[slot].set(new, mode="drop") for old, new in zip(state, row, strict=True))
    )


def commit(
    state: SamplerState, slots: Int[Array, " all_rows"], ids: Int[Array, " all_rows"]
) -> SamplerState:
    """Remember the sampled tokens of all instances. Donate `state`, the result replaces it.

    Args:
        state: The state the tokens were sampled with.
        slots: Slot of each row, at most once; rows whose slot does not exist are dropped.
        ids: The token sampled in each row.
    """
    slots = jnp.where(slots < 0, state.num_slots, slots)
    recent = state.recent.at[slots].get(mode="clip")
    return state._replace(
        last_token=state.last_token.at[slots].set(ids, mode="drop"),
        recent=state.recent.at[slots].set(
            jnp.concatenate([recent[:, 1:], ids[:, None]], axis=1), mode="drop"
        ),
        counts=state.counts.at[slots, ids].add(1, mode="drop"),
    )
