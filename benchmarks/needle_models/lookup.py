"""The one-layer needle: a key-value look-up over the whole context.

Every token of the context is a (key, value) pair, the last token asks for a key, and exactly one
pair has it. Token ids: pairs, then queries, then answers. One layer computes attention only where
a token is sampled, so time is linear in the context.
"""

import numpy as np

from benchmarks.needle_models.needle import Needle, NeedlePrompt
from benchmarks.needle_models.weights import (
    HIDDEN_SIZE,
    Tensors,
    codes,
    copying_layer,
    norm_gain,
    score_scale,
    sections,
    slow_dims,
    to_head,
)

KEY_BITS = 6
VALUE_BITS = 4
NUM_KEYS = 2**KEY_BITS
NUM_VALUES = 2**VALUE_BITS
NUM_PAIRS = NUM_KEYS * NUM_VALUES

BIT_SCORE = 32.0  # one wrong bit costs 64 nats, where 2**21 distractors gain ln(2**21) = 15

# Keys lie in rotary pairs 13 to 15 of 16. Over 2**21 positions the fastest of them turns by
# 2**21 * 1e12**(-13/16) = 4e-4: a score changes by less than one part in a thousand.
MAX_CONTEXT = 2**21
ROPE_THETA = 1e12


def pair_token(key: int, value: int) -> int:
    """Return the id of the context token that maps `key` to `value`."""
    return key * NUM_VALUES + value


def query_token(key: int) -> int:
    """Return the id of the last token, which asks for `key`."""
    return NUM_PAIRS + key


def answer_token(value: int) -> int:
    """Return the id of the token that answers `value`."""
    return NUM_PAIRS + NUM_KEYS + value


def _tensors() -> Tensors:
    """Return weights that score the query's key bits against every pair's key bits."""
    key, value, asked, answer = sections(KEY_BITS, VALUE_BITS, KEY_BITS, VALUE_BITS)
    embed = np.zeros((NUM_PAIRS + NUM_KEYS + NUM_VALUES, HIDDEN_SIZE), np.float32)
    embed[:NUM_PAIRS, key] = np.repeat(codes(KEY_BITS), NUM_VALUES, axis=0)
    embed[:NUM_PAIRS, value] = np.tile(codes(VALUE_BITS), (NUM_KEYS, 1))
    embed[NUM_PAIRS : NUM_PAIRS + NUM_KEYS, asked] = codes(KEY_BITS)
    head = np.zeros_like(embed)
    head[NUM_PAIRS + NUM_KEYS :, answer] = codes(VALUE_BITS)

    pair_gain, query_gain = norm_gain(KEY_BITS + VALUE_BITS), norm_gain(KEY_BITS)
    return {
        "model.embed_tokens.weight": embed,
        **copying_layer(
            0,
            query=to_head(asked, slow_dims(KEY_BITS), score_scale(BIT_SCORE) / query_gain),
            key=to_head(key, slow_dims(KEY_BITS), 1 / pair_gain),
            source=value,
            gain=pair_gain,
            target=answer,
        ),
        "model.norm.weight": np.ones(HIDDEN_SIZE, np.float32),
        "lm_head.weight": head,
    }


def _fill(rng: np.random.Generator, context: int, position: int) -> NeedlePrompt:
    """Put one pair with the asked key among pairs with other keys."""
    key, value = int(rng.integers(NUM_KEYS)), int(rng.integers(NUM_VALUES))
    other_keys = (key + rng.integers(1, NUM_KEYS, context)) % NUM_KEYS
    token_ids = other_keys * NUM_VALUES + rng.integers(NUM_VALUES, size=context)
    token_ids[position] = pair_token(key, value)
    token_ids[-1] = query_token(key)
    return NeedlePrompt(token_ids.tolist(), answer_token(value))


LOOKUP = Needle(
    name="lookup",
    max_context=MAX_CONTEXT,
    rope_theta=ROPE_THETA,
    first_position=0,
    tail=2,
    tensors=_tensors,
    fill=_fill,
)
