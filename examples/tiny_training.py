"""Learning to predict the next token: windows of text, loss, optimizer, held-out score."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.dense import dense_logits
from examples.tiny_tokenizer import BOS_ID, EOS_ID

IGNORED = -1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train.

    The rate rises, stays, and falls to 0. Windows are short before it falls, since attention
    costs half of the time on a CPU core, and some are long then.

    Attributes:
        steps: Updates of the weights.
        warmup_steps: Updates in which the rate rises; at most a tenth of `steps` is used.
        decay_share: Fraction of the steps, at the end, in which the rate falls as a cosine.
        tokens_per_step: Trained tokens of a step; all contexts divide it.
        context: Tokens of a window until the rate falls.
        late_context: Tokens of a window from then on.
        long_context: Tokens of a window in every `long_every`-th step from then on.
        long_every: Steps from one with `long_context` to the next.
        learning_rate: Highest rate of AdamW (embedding, norms).
        muon_rate: Highest rate of Muon (all other matrices).
        weight_decay: Decay of the matrices that Muon updates.
        seed: Of the weights and of the windows.
    """

    steps: int = 850
    warmup_steps: int = 60
    decay_share: float = 1 / 3
    tokens_per_step: int = 2048
    context: int = 128
    late_context: int = 256
    long_context: int = 2048
    long_every: int = 8
    learning_rate: float = 4e-3
    muon_rate: float = 2e-2
    weight_decay: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("context", "late_context", "long_context"):
            if self.tokens_per_step % getattr(self, name):
                raise ValueError(
                    f"tokens_per_step={self.tokens_per_step} must be a multiple of "
                    f"{name}={getattr(self, name)}"
                )

    @property
    def decay_start(self) -> int:
        """The first step, from 0, in which the rate falls."""
        return round(self.steps * (1 - self.decay_share))

    def context_at(self, step: int) -> int:
        """Tell the tokens of a window in step `step`, from 0."""
        if step < self.decay_start:
            return self.context
        is_long = step % self.long_every == 0
        return self.long_context if is_long else self.late_context

    def rate_at(self, step: int) -> float:
        """Tell which part of the highest rate step `step` uses, from 0 to 1."""
        warmup = min(self.warmup_steps, self.steps // 10)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = max(0, step - self.decay_start) / max(1, self.steps - self.decay_start)
        return 0.5 * (1 + math.cos(math.pi * done))


class TrainState(NamedTuple):
    """What a step replaces."""

    params: nnx.State
    optimizer: optax.OptState


def stream_of(tokenizer: Tokenizer, chapters: list[str]) -> Int[np.ndarray, " tokens"]:
    """Encode chapters one after the other, each begun by BOS and ended by EOS."""
    encoded = tokenizer.encode_batch_fast(chapters)
    return np.concatenate([np.asarray([*item.ids, EOS_ID], np.int32) for item in encoded])


def paragraph_starts(
    tokenizer: Tokenizer, stream: Int[np.ndarray, " tokens"]
) -> Int[np.ndarray, " tokens"]:
    """Tell for each token the place where its paragraph, or its verse, begins."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    ends = [BOS_ID] + [token for token, text in enumerate(texts) if "\n" in text]
    begins = np.flatnonzero(np.isin(stream, ends)) + 1
    at = np.searchsorted(begins, np.arange(len(stream)), side="right") - 1
    return begins[np.maximum(at, 0)]


def draw_windows(
    rng: np.random.Generator,
    stream: Int[np.ndarray, " tokens"],
    starts: Int[np.ndarray, " tokens"],
    *,
    batch: int,
    context: int,
) -> Int[np.ndarray, "batch window"]:
    """Draw rows of BOS, then text from a random place.

    Half of the windows begin with a paragraph, as prompts do; the others anywhere, so that
    the ends of long paragraphs are trained as well.

    Args:
        rng: Advanced.
        stream: Longer than a window.
        starts: As from `paragraph_starts`.
        batch: Rows.
        context: Tokens to predict in a row; a row has one more, since inputs and targets overlap.
    """
    first = rng.integers(0, len(stream) - context, batch)
    first = np.where(rng.random(batch) < 0.5, starts[first], first)
    rows = stream[first[:, None] + np.arange(context)]
    return np.concatenate([np.full((batch, 1), BOS_ID, np.int32), rows], axis=1)


def make_optimizer(recipe: Recipe, params: nnx.State) -> optax.GradientTransformation:
    """Make Muon for the matrices of the layers, and AdamW for embedding and norms.

    Source: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon.

    Args:
        recipe: The highest rates; a step scales the updates.
        params: Of the decoder; kernels are told from the others by their path.
    """

    def as_matrix(path: tuple[object, ...], _: Array) -> optax.contrib.MuonDimensionNumbers | None:
        is_kernel = "kernel" in jax.tree_util.keystr(path)
        return optax.contrib.MuonDimensionNumbers() if is_kernel else None

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            recipe.muon_rate,
            weight_decay=recipe.weight_decay,
            adam_b2=0.99,
            adam_learning_rate=recipe.learning_rate,
            muon_weight_dimension_numbers=jax.tree.map_with_path(as_matrix, params),
        ),
    )


def token_losses(
    model: Decoder, rows: Int[Array, "batch tokens"]
) -> Float[Array, "batch predicted"]:
    """Compute the negative log-likelihood of each token but the first, in nats.

    Args:
        model: The decoder.
        rows: Token ids; `IGNORED` ones, which end a row, cost nothing.
    """
    targets = rows[:, 1:]
    logits = jax.vmap(lambda row: dense_logits(model, row))(jnp.maximum(rows[:, :-1], 0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.where(targets == IGNORED, 0.0, losses)


def make_step(
    config: ModelConfig, recipe: Recipe
) -> tuple[
    TrainState,
    nnx.GraphDef[Decoder],
    Callable[..., tuple[TrainState, Float[Array, ""]]],
]:
    """Make the first state, the model's structure, and the jitted step.

    The step takes a state, which it donates, rows of token ids, and the part of the highest
    rate to use; it returns the next state and the mean loss in nats a token.
    """
    structure, params = nnx.split(Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(recipe.seed)))
    optimizer = make_optimizer(recipe, params)

    def loss_of(params: nnx.State, rows: Int[Array, "batch tokens"]) -> Float[Array, ""]:
        return jnp.mean(token_losses(nnx.merge(structure, params), rows))

    @jax.jit(donate_argnums=0)
    def step(
        state: TrainState, rows: Int[Array, "batch window"], rate: Float[Array, ""]
    ) -> tuple[TrainState, Float[Array, ""]]:
        loss, gradients = jax.value_and_grad(loss_of)(state.params, rows)
        updates, slots = optimizer.update(gradients, state.optimizer, state.params)
        params = jax.tree.map(lambda weight, update: weight + rate * update, state.params, updates)
        return TrainState(params, slots), loss

    return TrainState(params, optimizer.init(params)), structure, step


def bits_per_byte(
    model: Decoder, tokenizer: Tokenizer, texts: list[str], context: int = 1024, batch: int = 4
) -> float:
    """Score texts: bits needed for a byte of them, each window predicted from its own start.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        texts: Cut into windows of `context` tokens, each begun by BOS.
        context: Tokens the model sees at most.
        batch: Windows computed at once.
    """
    score = nnx.jit(lambda model, rows: jnp.sum(token_losses(model, rows)))
    rows: list[Int[np.ndarray, " tokens"]] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for first in range(0, len(ids), context):
            row = [BOS_ID, *ids[first : first + context]]
            rows.append(np.pad(row, (0, context + 1 - len(row)), constant_values=IGNORED))
    rows += [np.full(context + 1, IGNORED)] * (-len(rows) % batch)
    nats = sum(
        float(score(model, np.stack(rows[first : first + batch]).astype(np.int32)))
        for first in range(0, len(rows), batch)
    )
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int,
    temperature: float = 0.5,
    seed: int = 0,
) -> str:
    """Continue a prompt, one forward pass over everything for each token.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        prompt: Text to continue.
        tokens: Tokens to add, or fewer when the text ends.
        temperature: 0 takes the best token.
        seed: Of the draws.
    """
    ids = tokenizer.encode(prompt).ids
    length = -(-(len(ids) + tokens) // 128) * 128
    score = nnx.jit(lambda model, row, at: dense_logits(model, row)[at])
    rng = np.random.default_rng(seed)
    for _ in range(tokens):
        row = np.pad(np.asarray(ids, np.int32), (0, length - len(ids)))
        logits = np.asarray(score(model, row, len(ids) - 1), np.float64)
        noise = temperature * rng.gumbel(size=logits.shape) if temperature else 0.0
        ids.append(int(np.argmax(logits + noise)))
        if ids[-1] == EOS_ID:
            break
    return tokenizer.decode(ids)
