"""Text becomes the ids that the checkpoint's files say, and ids become that text again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from distkv_jax.errors import ConfigError, RequestError
from distkv_jax.models.detokenizer import CONTEXT_TOKENS, MAX_WAITING, REPLACEMENT
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer

TEXT = (
    "Wer reitet so spät durch Nacht und Wind? \N{OWL}\N{FLAG IN HOLE} 日本語 the end of the world"
)
NAMES: dict[str, object] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


def byte_level() -> tokenizers.Tokenizer:
    """Make a byte-level BPE, as Llama 3 and Qwen have: characters may be split."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT] * 4, trainer)
    return inner


def byte_fallback() -> tokenizers.Tokenizer:
    """Make a tokenizer like Llama 2's: words with a leading sign, other characters as bytes."""
    words = ["▁the", "▁end", "▁", "t", "h", "e", "n", "d", "s", "<s>", "</s>", "<unk>"]
    vocab = {word: number for number, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("e", "n"), ("en", "d"), ("▁", "end")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges) if a + b not in vocab}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), NAMES)


def test_text_survives(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_special_tokens_are_known_and_skipped(tokenizer: Tokenizer):
    ids = tokenizer.encode("<s>the</s>")

    assert (tokenizer.bos_id, tokenizer.eos_id) == (ids[0], ids[-1])
    assert tokenizer.special_ids == {ids[0], ids[-1]}
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>the</s>"
    assert tokenizer.token_text(ids[-1]) == "</s>"


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>"])
def test_what_surrounds_a_text_is_what_tokenizer_json_says(single: str, add_bos: bool | None):
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
    )

    tokenizer = Tokenizer(inner, NAMES | {"add_bos_token": add_bos})

    plain = tokenizer.encode("the", add_special_tokens=False)
    around = [0] * ("<s>" in single), [1] * ("</s>" in single)
    assert tokenizer.encode("the") == around[0] + plain + around[1]


def test_truncation_and_padding_of_the_file_are_off():
    inner = byte_level()
    inner.enable_truncation(2)
    inner.enable_padding(length=99)

    tokenizer = Tokenizer(inner, NAMES)

    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


LEVEL, FALLBACK = Tokenizer(byte_level(), NAMES), Tokenizer(byte_fallback(), NAMES)


@pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK], ids=["byte_level", "byte_fallback"])
@given(text=st.text(max_size=40), step=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_pieces_are_the_text_and_never_broken(tokenizer: Tokenizer, text: str, step: int):
    text = text.replace(REPLACEMENT, "?").replace("<", "?")
    ids = tokenizer.encode(text)
    stream = tokenizer.detokenizer()

    pieces = [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)]

    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(2, 299), max_size=40))
@settings(deadline=None, max_examples=100)
def test_random_tokens_give_what_decoding_them_at_once_gives(ids: list[int]):
    stream = LEVEL.detokenizer()

    pieces = [stream.push([id_]) for id_ in ids]

    assert "".join(pieces) + stream.flush() == LEVEL.decode(ids)


@pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK], ids=["byte_level", "byte_fallback"])
def test_text_goes_on_where_the_prompt_ended(tokenizer: Tokenizer):
    prompt, ids = tokenizer.encode("the end"), tokenizer.encode("the end the end")
    assert ids[: len(prompt)] == prompt

    stream = tokenizer.detokenizer(prompt)

    assert "".join(stream.push([id_]) for id_ in ids[len(prompt) :]) == " the end"


def test_a_character_comes_when_its_last_byte_does():
    ids = LEVEL.encode("\U00010000")
    assert len(ids) == 4
    stream = LEVEL.detokenizer()

    assert [stream.push([id_]) for id_ in ids] == ["", "", "", "\U00010000"]
    assert stream.push([]) == ""


def test_an_unfinished_character_comes_with_the_flush():
    stream = LEVEL.detokenizer()

    assert stream.push(LEVEL.encode("\U00010000")[:3]) == ""
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""


@pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK], ids=["byte_level", "byte_fallback"])
@pytest.mark.parametrize(("skip", "text"), [(True, "the end"), (False, "the</s> end")])
def test_special_tokens_are_no_text_unless_asked_for(tokenizer: Tokenizer, skip: bool, text: str):
    words = [tokenizer.encode(word)[-1:] for word in ("the", "the end")]
    ids = [*words[0], *tokenizer.encode("</s>")[-1:], *words[1]]
    stream = tokenizer.detokenizer(skip_special_tokens=skip)

    assert "".join(stream.push([id_]) for id_ in ids) == text


def test_a_broken_byte_does_not_change_the_character_before_it():
    """This decoder shows a run of bytes as broken from its start if any of it is."""
    ids = [*FALLBACK.encode("\N{OWL}")[1:], FALLBACK.encode("\u0080")[-2], *FALLBACK.encode("t")]
    stream = FALLBACK.detokenizer()

    pieces = [stream.push([id_]) for id_ in ids]

    assert "".join(pieces) == f"\N{OWL}{REPLACEMENT} t"


@pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK], ids=["byte_level", "byte_fallback"])
def test_endless_broken_bytes_cost_a_bounded_window(tokenizer: Tokenizer):
    byte = next(
        id_ for id_ in range(2, tokenizer.vocab_size) if tokenizer.decode([id_]) == REPLACEMENT
    )
    stream = tokenizer.detokenizer()
    longest = 0
    decode = stream._decode

    def measured(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    stream._decode = measured
    text = "".join(stream.push([byte]) for _ in range(500)) + stream.flush()

    assert set(text) == {REPLACEMENT}
    assert len(text) == 500
    assert longest <= CONTEXT_TOKENS + MAX_WAITING + 1


def test_a_folder_without_tokenizer_has_none(tmp_path: Path):
    assert Tokenizer.from_folder(tmp_path) is None
    with pytest.raises(RequestError, match="has no tokenizer.json: send token ids, or add tokeniz"):
        require_tokenizer(None)


def test_a_folder_is_read_whole(tmp_path: Path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    entries = NAMES | {
        "add_bos_token": True,
        "chat_template": "{{ bos_token }}{{ messages[0].role }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(entries))

    tokenizer = require_tokenizer(Tokenizer.from_folder(tmp_path))

    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "<s>user"
    assert tokenizer.vocab_size == 300


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text('{"version"')

    with pytest.raises(ConfigError, match=f"{name} (is damaged|cannot be read as JSON)"):
        Tokenizer.from_folder(tmp_path)


def test_chat_without_a_template_says_what_to_do(tokenizer: Tokenizer):
    with pytest.raises(RequestError, match="no chat template: send a prompt, or add chat_template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
