"""The two-layer needle: what followed the last token, the one time it stood there before?

The prompt is BOS, random words, somewhere K V, more random words, and K; the answer is V. Layer 1
copies every token's predecessor; layer 2 looks for the token whose copied predecessor is K. So V
is found only if it attended to K in layer 1, wherever the blocks and the chunks of the two lie.
"""

import math

import numpy as np
from jaxtyping import Float

from benchmarks.needle_models.needle import Needle, NeedlePrompt
from benchmarks.needle_models.weights import (
    HEAD_DIM,
    HIDDEN_SIZE,
    NUM_ROTARY_PAIRS,
    Tensors,
    codes,
    copying_layer,
    norm_gain,
    score_scale,
    sections,
    slow_dims,
    to_head,
)

WORD_BITS = 10
NUM_WORDS = 2**WORD_BITS
BOS = NUM_WORDS

# Layer 1 tells offsets apart by the 11 fastest of the 16 rotary pairs: below 2**17 the offsets 0
# and 2 score 40 nats less than 1, every other one 97, where all together gain ln(2**17) = 12.
MAX_CONTEXT = 2**17
ROPE_THETA = 1e9
NUM_FAST_PAIRS = 11
PAIR_SCORE = 80.0

# Layer 2 has its codes in the five slow pairs. Over 2**17 positions the fastest of these turns by
# 2**17 * 1e9**(-11/16) = 0.085, so one wrong bit costs 24 * 2 * (cos - sin) = 43 nats at least.
BIT_SCORE = 24.0


def _look_back(one: slice, scale: float, *, steps: int) -> Float[np.ndarray, "head_dim hidden"]:
    """Return a projection to `scale` at angle 0 in every fast pair, turned back by `steps`."""
    angles = steps * ROPE_THETA ** (-np.arange(NUM_FAST_PAIRS) / NUM_ROTARY_PAIRS)
    weight = np.zeros((HEAD_DIM, HIDDEN_SIZE), np.float32)
    weight[:NUM_FAST_PAIRS, one] = scale * np.cos(angles)[:, None]
    weight[NUM_ROTARY_PAIRS : NUM_ROTARY_PAIRS + NUM_FAST_PAIRS, one] = (
        -scale * np.sin(angles)[:, None]
    )
    return weight


def _tensors() -> Tensors:
    """Return weights that copy the predecessor, then look for the query among predecessors."""
    one, bos, word, before, answer = sections(1, 1, WORD_BITS, WORD_BITS, WORD_BITS)
    embed = np.zeros((NUM_WORDS + 1, HIDDEN_SIZE), np.float32)
    embed[:, one] = 1
    embed[:NUM_WORDS, word] = codes(WORD_BITS)
    embed[BOS, bos] = math.sqrt(WORD_BITS)  # as long as a word, with nothing to copy
    head = np.zeros_like(embed)
    head[:NUM_WORDS, answer] = codes(WORD_BITS)

    word_gain, copied_gain = norm_gain(1 + WORD_BITS), norm_gain(1 + 2 * WORD_BITS)
    return {
        "model.embed_tokens.weight": embed,
        **copying_layer(
            0,
            query=_look_back(one, score_scale(PAIR_SCORE) / word_gain, steps=1),
            key=_look_back(one, 1 / word_gain, steps=0),
            source=word,
            gain=word_gain,
            target=before,
        ),
        **copying_layer(
            1,
            query=to_head(word, slow_dims(WORD_BITS), score_scale(BIT_SCORE) / copied_gain),
            key=to_head(before, slow_dims(WORD_BITS), 1 / copied_gain),
            source=word,
            gain=copied_gain,
            target=answer,
        ),
        "model.norm.weight": np.ones(HIDDEN_SIZE, np.float32),
        "lm_head.weight": head,
    }


def _fill(rng: np.random.Generator, context: int, position: int) -> NeedlePrompt:
    """Put K at `position` and at the end, and nowhere else between random words."""
    word = int(rng.integers(NUM_WORDS))
    token_ids = (word + rng.integers(1, NUM_WORDS, context)) % NUM_WORDS
    token_ids[0] = BOS
    token_ids[[position, -1]] = word
    return NeedlePrompt(token_ids.tolist(), int(token_ids[position + 1]))


INDUCTION = Needle(
    name="induction",
    max_context=MAX_CONTEXT,
    rope_theta=ROPE_THETA,
    first_position=1,
    tail=3,
    tensors=_tensors,
    fill=_fill,
)
