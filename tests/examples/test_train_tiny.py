"""The training example learns from any text, and what it saves is a Hugging Face folder."""

import dataclasses
import io
import json
import struct
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from examples.tiny_checkpoint import hf_config, hf_weights
from examples.tiny_text import chapters_of, hold_out, read_files, read_r_strings
from examples.tiny_tokenizer import BOS_ID, EOS_ID, learn_tokenizer
from examples.tiny_training import (
    Recipe,
    bits_per_byte,
    draw_windows,
    make_step,
    paragraph_starts,
    stream_of,
)
from examples.train_tiny import main, tiny_config, train

CHAPTER = "The old man saw the sea. The sea was calm.\n\nHe said, I will go to the sea again."
RECIPE = Recipe(steps=20, tokens_per_step=64, context=32, late_context=32, long_context=32)


@pytest.fixture(autouse=True)
def lenient_promotion() -> Iterator[None]:
    """Let optax mix floats with its integer step count, which the strict setting forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_model(vocab_size: int = 270) -> Decoder:
    config = tiny_config(vocab_size, hidden=16, layers=1)
    return Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_a_few_steps_reduce_the_loss_and_leave_a_checkpoint(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"CHAPTER {i}\n\n{CHAPTER}\n" for i in range(1, 5)))
    split = read_files([book])
    tokenizer = learn_tokenizer(split.train, 270)
    config = tiny_config(tokenizer.get_vocab_size(), hidden=16, layers=1)
    untrained = bits_per_byte(make_model(config.vocab_size), tokenizer, split.held_out, 32)

    model, recipe = train(
        RECIPE, config, tokenizer, split, out=tmp_path, console=Console(file=io.StringIO())
    )

    assert recipe == RECIPE
    assert bits_per_byte(model, tokenizer, split.held_out, 32) < untrained - 1.0
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["model.layers.0.mlp.down_proj.weight"].shape == (16, 32)
    assert saved["model.layers.0.self_attn.k_proj.weight"].shape == (8, 16)
    assert {str(array.dtype) for array in saved.values()} == {"bfloat16"}
    kernel = np.asarray(model.layers[0].mlp.down_proj.kernel[...]).T
    np.testing.assert_allclose(
        saved["model.layers.0.mlp.down_proj.weight"].astype(np.float32), kernel, rtol=2**-8
    )
    settings = json.loads((tmp_path / "config.json").read_text())
    assert ModelConfig.from_hf(settings) == config
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == tokenizer.to_str()


def test_names_are_those_of_a_hugging_face_llama():
    layer = "model.layers.0."
    projections = [f"self_attn.{name}_proj" for name in "qkvo"]
    projections += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    norms = ["input_layernorm", "post_attention_layernorm"]

    assert set(hf_weights(make_model())) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"{layer}{name}.weight" for name in projections + norms),
    }


def test_config_survives_its_file():
    config = tiny_config(270, hidden=16, layers=1)

    assert ModelConfig.from_hf(hf_config(config)) == config


def test_same_seed_gives_the_same_weights_and_windows():
    stream = np.arange(200, dtype=np.int32)

    def start() -> list[bytes]:
        state, structure, _ = make_step(tiny_config(270, hidden=16, layers=1), RECIPE)
        weights = hf_weights(nnx.merge(structure, state.params))
        rng = np.random.default_rng(RECIPE.seed)
        rows = draw_windows(rng, stream, stream, batch=4, context=8)
        return [np.asarray(array).tobytes() for array in [*weights.values(), rows]]

    assert start() == start()


def test_rate_rises_stays_and_falls_and_windows_grow_when_it_falls():
    recipe = dataclasses.replace(
        RECIPE, steps=30, decay_share=0.5, context=16, long_context=64, long_every=4
    )
    rates = [recipe.rate_at(step) for step in range(30)]

    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert set(rates[4:16]) == {1.0}
    assert sorted(rates[15:], reverse=True) == rates[15:] and 0 < rates[-1] < 0.05
    assert [recipe.context_at(step) for step in (0, 14, 15, 16, 17)] == [16, 16, 32, 64, 32]


def test_context_that_does_not_divide_a_step_is_refused():
    with pytest.raises(ValueError, match="tokens_per_step=64 must be a multiple of context=24"):
        dataclasses.replace(RECIPE, context=24)


def test_windows_begin_with_bos_and_half_of_them_with_a_paragraph():
    tokenizer = learn_tokenizer([CHAPTER], 270)
    stream = stream_of(tokenizer, [CHAPTER] * 8)
    starts = paragraph_starts(tokenizer, stream)
    rows = draw_windows(np.random.default_rng(0), stream, starts, batch=400, context=8)

    assert rows.shape == (400, 9) and set(rows[:, 0]) == {BOS_ID}
    first = [tokenizer.decode([int(token)]) for token in rows[:, 1]]
    assert 170 <= sum(text.startswith(("T", "H")) for text in first) < 260


def test_every_chapter_is_begun_and_ended():
    tokenizer = learn_tokenizer([CHAPTER], 270)
    stream = stream_of(tokenizer, ["a", "b"])

    assert [int(stream[i]) for i in (0, 2, 3, 5)] == [BOS_ID, EOS_ID, BOS_ID, EOS_ID]


def test_bits_of_uniform_guesses_are_the_logarithm_of_the_vocabulary():
    model = make_model(vocab_size=256 + 2)
    model.norm.weight[...] = jnp.zeros_like(model.norm.weight[...])
    tokenizer = learn_tokenizer([], 258)

    assert bits_per_byte(model, tokenizer, ["seven", "bytes"], 4) == pytest.approx(np.log2(258))


def test_chapters_lose_headings_title_page_and_end_matter():
    first = ["A BOOK", "", "Chapter 1", "", "One _two_", "three.", "", "* * *", "", "Four."]
    second = ["", "CHAPTER II", "Five.", "FINIS", "printed in London"]

    assert chapters_of(first + second) == ["One two three.\n\nFour.", "Five."]


def test_book_without_headings_is_cut_by_paragraphs():
    lines = "\n\n".join(f"paragraph {i}" for i in range(90)).splitlines()

    assert [chapter.count("paragraph") for chapter in chapters_of(lines)] == [40, 40, 10]


def test_held_out_chapters_are_whole_and_of_every_book():
    long, short = [f"long {i}" for i in range(60)], ["short 0", "short 1"]
    split = hold_out([long, short])

    assert split.held_out == ["long 12", "long 37", "short 1"]
    assert sorted(split.train + split.held_out) == sorted(long + short)


def test_r_strings_are_read_and_anything_else_is_refused():
    def chunk(kind: int) -> bytes:
        body = b"X\n" + struct.pack(">3I", 3, 262658, 197888) + struct.pack(">I", 5) + b"UTF-8"
        body += struct.pack(">II", kind, 1) + struct.pack(">II", 262153, 3) + b"abc"
        return struct.pack(">I", len(body)) + zlib.compress(body)

    assert read_r_strings(chunk(16) * 2) == [["abc"], ["abc"]]
    with pytest.raises(ValueError, match=r"R object of type 13, expected type 16 \(strings\)"):
        read_r_strings(chunk(13))


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    text = capsys.readouterr().out
    assert "python -m examples.train_tiny --text book.txt" in text
    assert "held out" in text
