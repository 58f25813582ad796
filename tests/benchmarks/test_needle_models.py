"""The hand-built models find their one token at every depth, and nothing else decides."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float, Int
from safetensors.numpy import load_file

from benchmarks.needle_models import INDUCTION, LOOKUP, NEEDLES, Needle, induction, lookup
from distkv_jax.mesh import load_mesh_config, make_mesh
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.dense import dense_logits
from distkv_jax.models.load_weights import load_weights
from distkv_jax.models.model_folder import read_config
from distkv_jax.models.sharding import abstract_decoder

DEPTHS = (0.0, 0.1, 0.5, 0.77, 1.0)
CONTEXT = 300


class NumpyLlama:
    """A single-head Llama in float32: the smallest thing that reads the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")

    def last_logits(
        self, token_ids: list[int], rows_at_once: int = 256
    ) -> Float[np.ndarray, " vocab"]:
        """Score the token after the last; the last layer computes the last row only."""
        x = self.weights["model.embed_tokens.weight"][np.array(token_ids)]
        num_layers = self.config["num_hidden_layers"]
        for layer in range(num_layers):
            first_row = len(token_ids) - 1 if layer == num_layers - 1 else 0
            x = self._layer(x, f"model.layers.{layer}.", first_row, rows_at_once)
        return self._norm(x[-1], "model.norm.weight") @ self.weights["lm_head.weight"].T

    def answer(self, token_ids: list[int]) -> int:
        """Return the greedy continuation; its margin must be clear of rounding."""
        logits = self.last_logits(token_ids)
        runner_up, best = np.partition(logits, -2)[-2:]
        assert best - runner_up > 1
        return int(logits.argmax())

    def _layer(
        self, x: Float[np.ndarray, "tokens hidden"], prefix: str, first_row: int, rows_at_once: int
    ) -> Float[np.ndarray, "rows hidden"]:
        normed = self._norm(x, prefix + "input_layernorm.weight")
        rows, positions = x[first_row:], np.arange(len(x))
        q = normed[first_row:] @ self.weights[prefix + "self_attn.q_proj.weight"].T
        q = self._rotate(q, positions[first_row:])
        k = self._rotate(normed @ self.weights[prefix + "self_attn.k_proj.weight"].T, positions)
        v = normed @ self.weights[prefix + "self_attn.v_proj.weight"].T
        attended = np.empty_like(q)
        for start in range(0, len(rows), rows_at_once):
            stop = min(start + rows_at_once, len(rows))
            seen = first_row + stop
            scores = q[start:stop] @ k[:seen].T * np.float32(q.shape[1] ** -0.5)
            is_future = positions[None, :seen] > positions[first_row + start : seen, None]
            scores[is_future] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            attended[start:stop] = weights @ v[:seen] / weights.sum(axis=1, keepdims=True)
        x = rows + attended @ self.weights[prefix + "self_attn.o_proj.weight"].T
        normed = self._norm(x, prefix + "post_attention_layernorm.weight")
        gate = normed @ self.weights[prefix + "mlp.gate_proj.weight"].T
        up = normed @ self.weights[prefix + "mlp.up_proj.weight"].T
        gated = gate / (1 + np.exp(-gate)) * up
        return x + gated @ self.weights[prefix + "mlp.down_proj.weight"].T

    def _norm(
        self, x: Float[np.ndarray, "*rows hidden"], name: str
    ) -> Float[np.ndarray, "*rows hidden"]:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config["rms_norm_eps"]) * self.weights[name]

    def _rotate(
        self, x: Float[np.ndarray, "rows head_dim"], positions: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows head_dim"]:
        half = x.shape[1] // 2
        exponents = np.arange(half, dtype=np.float32) / half
        frequencies = (self.config["rope_theta"] ** -exponents).astype(np.float32)
        angles = positions.astype(np.float32)[:, None] * frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        low, high = x[:, :half], x[:, half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1)


@pytest.fixture(scope="module", params=NEEDLES)
def needle(request: pytest.FixtureRequest) -> Needle:
    return NEEDLES[request.param]


@pytest.fixture(scope="module")
def folder(needle: Needle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(needle.name)
    needle.write(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> NumpyLlama:
    return NumpyLlama(folder)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    config = read_config(folder)
    mesh = make_mesh(load_mesh_config("cpu-1"))
    params = load_weights(folder, config, mesh=mesh, dtype=jnp.float32)
    return nnx.merge(abstract_decoder(config, jnp.float32).graphdef, params)


@pytest.mark.parametrize("depth", DEPTHS)
def test_needle_is_found_at_every_depth(needle: Needle, model: NumpyLlama, depth: float) -> None:
    for seed in range(8):
        prompt = needle.prompt(CONTEXT, needle.position_at(CONTEXT, depth), seed=seed)

        assert len(prompt.token_ids) == CONTEXT
        assert model.answer(prompt.token_ids) == prompt.answer


@pytest.mark.parametrize("depth", DEPTHS)
def test_dense_decoder_finds_it_too(needle: Needle, decoder: Decoder, depth: float) -> None:
    prompt = needle.prompt(CONTEXT, needle.position_at(CONTEXT, depth), seed=0)

    assert int(dense_logits(decoder, jnp.array(prompt.token_ids))[-1].argmax()) == prompt.answer


def test_shortest_prompt_works(needle: Needle, model: NumpyLlama) -> None:
    context = needle.first_position + needle.tail
    prompt = needle.prompt(context, needle.first_position, seed=1)

    assert model.answer(prompt.token_ids) == prompt.answer


def test_only_the_needle_decides_a_lookup(tmp_path: Path) -> None:
    LOOKUP.write(tmp_path)
    model = NumpyLlama(tmp_path)
    token_ids, answer = LOOKUP.prompt(CONTEXT, 100, seed=3)
    key, value = divmod(token_ids[100], lookup.NUM_VALUES)
    assert answer == lookup.answer_token(value)

    for other in range(lookup.NUM_VALUES):
        token_ids[100] = lookup.pair_token(key, other)
        assert model.answer(token_ids) == lookup.answer_token(other)


def test_a_lookup_survives_a_context_of_near_misses(tmp_path: Path) -> None:
    LOOKUP.write(tmp_path)
    model = NumpyLlama(tmp_path)
    key, value, wrong = 0b101101, 5, 10
    near_misses = [lookup.pair_token(key ^ 1 << bit, wrong) for bit in range(lookup.KEY_BITS)]
    token_ids = near_misses * 500 + [lookup.query_token(key)]
    token_ids[1234] = lookup.pair_token(key, value)

    assert model.answer(token_ids) == lookup.answer_token(value)


def test_the_token_after_the_needle_decides_an_induction(tmp_path: Path) -> None:
    INDUCTION.write(tmp_path)
    model = NumpyLlama(tmp_path)
    token_ids, answer = INDUCTION.prompt(CONTEXT, 100, seed=3)
    assert answer == token_ids[101]

    for bit in range(induction.WORD_BITS):
        token_ids[101] = answer ^ 1 << bit
        assert model.answer(token_ids) == answer ^ 1 << bit


@pytest.mark.parametrize("layer", [0, 1])
def test_an_induction_needs_both_layers(tmp_path: Path, layer: int) -> None:
    INDUCTION.write(tmp_path)
    model = NumpyLlama(tmp_path)
    token_ids, answer = INDUCTION.prompt(CONTEXT, 100, seed=3)
    model.weights[f"model.layers.{layer}.self_attn.o_proj.weight"] *= 0

    assert model.last_logits(token_ids).argmax() != answer


@pytest.mark.parametrize("seed", range(4))
def test_prompts_hold_the_needle_once(needle: Needle, seed: int) -> None:
    token_ids, _ = needle.prompt(5000, 777, seed=seed)
    if needle is LOOKUP:
        key = token_ids[-1] - lookup.NUM_PAIRS
        hits = [i for i, token in enumerate(token_ids[:-1]) if token // lookup.NUM_VALUES == key]
    else:
        hits = [i for i, token in enumerate(token_ids[:-1]) if token == token_ids[-1]]

    assert hits == [777]


def test_offset_one_beats_every_other_offset_by_more_than_they_add_up_to() -> None:
    pairs = np.arange(induction.NUM_FAST_PAIRS) / induction.NUM_ROTARY_PAIRS
    frequencies = induction.ROPE_THETA**-pairs
    offsets = np.concatenate([[0], np.arange(2, induction.MAX_CONTEXT)])
    gaps = np.zeros(len(offsets))
    for frequency in frequencies:
        gaps += induction.PAIR_SCORE * (1 - np.cos(frequency * (offsets - 1)))

    assert gaps.min() > 39
    assert gaps[2:].min() > 97
    assert gaps.min() > math.log(induction.MAX_CONTEXT) + 25


@pytest.mark.parametrize(
    ("context", "position", "message"),
    [
        (2**22, 5, "context=4194304 tokens; lookup takes at most 2097152"),
        (100, 99, "position=99 in a context of 100 tokens; lookup takes 0 to 98"),
    ],
)
def test_prompt_out_of_range_is_refused(context: int, position: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOOKUP.prompt(context, position, seed=0)


def test_needle_depths_span_the_context(needle: Needle) -> None:
    assert needle.position_at(1000, 0) == needle.first_position
    assert needle.position_at(1000, 1) == 1000 - needle.tail
