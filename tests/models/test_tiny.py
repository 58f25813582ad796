"""The model that ships is small, complete, and reads English."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import distkv_jax.models
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.dense import dense_logits
from distkv_jax.models.weight_names import checkpoint_name, flat_params, is_transposed

FOLDER = Path(distkv_jax.models.__file__).parent / "tiny"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

# The beginnings of chapters that were held out of training.
HELD_OUT = {
    "Pride and Prejudice": (
        '"I hope, my dear," said Mr. Bennet to his wife, as they were at breakfast the next '
        'morning, "that you have ordered a good dinner to-day, because I have reason to expect '
        'an addition to our family party."\n\n"Who do you mean, my dear? I know of nobody that '
        "is coming, I am sure, unless Charlotte Lucas should happen to call in--and I hope my "
        'dinners are good enough for her. I do not believe she often sees such at home."\n\n'
        '"The person of whom I speak is a gentleman, and a stranger."\n\nMrs. Bennet\'s eyes '
        'sparkled. "A gentleman and a stranger! It is Mr. Bingley, I am sure! Well, I am sure I '
        "shall be extremely glad to see Mr. Bingley. But--good Lord! how unlucky!"
    ),
    "Exodus": (
        "And the LORD spake unto Moses, saying,\nSanctify unto me all the firstborn, whatsoever "
        "openeth the womb among the children of Israel, both of man and of beast: it is mine.\n"
        "And Moses said unto the people, Remember this day, in which ye came out from Egypt, out "
        "of the house of bondage; for by strength of hand the LORD brought you out from this "
        "place: there shall no leavened bread be eaten.\nThis day came ye out in the month Abib."
    ),
}
# Measured: 1.420 and 1.270. An untrained model needs about 3.2.
MOST_BITS_PER_BYTE = {"Pride and Prejudice": 1.43, "Exodus": 1.28}


def read_json(name: str) -> dict[str, object]:
    return json.loads((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = ModelConfig.from_hf(read_json("config.json"), read_json("generation_config.json"))
    model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    saved = load_file(FOLDER / "model.safetensors")
    for path, param in flat_params(nnx.state(model, nnx.Param)):
        tensor = saved.pop(checkpoint_name(path)).astype(np.float32)
        param[...] = jnp.asarray(tensor.T if is_transposed(path) else tensor)
    assert not saved
    return model


def test_folder_is_complete_and_has_at_most_eight_megabytes():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}

    assert sorted(sizes) == sorted(FILES)
    assert sum(sizes.values()) <= 8_000_000


@pytest.mark.parametrize(
    "text",
    ['It was so, Mr. Bennet.\n\n"Was it?"', "naïve ☃ 漢字", "  two  spaces\t\r\n", "1813", "<|x|>"],
)
def test_tokenizer_gives_text_back(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text).ids

    assert ids[0] == 0
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_the_ids_of_the_config(tokenizer: Tokenizer):
    config, names = read_json("config.json"), read_json("tokenizer_config.json")

    assert tokenizer.token_to_id(str(names["bos_token"])) == config["bos_token_id"]
    assert [tokenizer.token_to_id(str(names["eos_token"]))] == config["eos_token_id"]
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_chat_template_tells_messages_one_after_the_other():
    names = read_json("tokenizer_config.json")
    messages = [{"role": "system", "content": "One."}, {"role": "user", "content": "Two."}]
    template = ImmutableSandboxedEnvironment().from_string(str(names["chat_template"]))
    text = template.render(messages=messages, add_generation_prompt=True, **names)

    assert text == "<|begin_of_text|>One.\n\nTwo.\n\n"


@pytest.mark.parametrize("book", HELD_OUT)
def test_held_out_text_needs_few_bits(model: Decoder, tokenizer: Tokenizer, book: str):
    ids = np.asarray(tokenizer.encode(HELD_OUT[book]).ids, np.int32)
    scores = np.asarray(nnx.jit(dense_logits)(model, jnp.asarray(ids)), np.float64)[:-1]
    surprise = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(scores)), ids[1:]]
    bits = float(surprise.sum()) / np.log(2) / len(HELD_OUT[book].encode())

    assert bits < MOST_BITS_PER_BYTE[book]
