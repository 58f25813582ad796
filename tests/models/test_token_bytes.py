"""The most bytes one token can stand for, or none where nobody can tell."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from distkv_jax.models.token_bytes import max_token_bytes

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(**changes: Any) -> dict[str, Any]:
    vocab = {text: index for index, text in enumerate([*BYTES, "he", "hell"])}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return json.loads(inner.to_str()) | changes


def with_bytes() -> dict[str, Any]:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁the": 256}
    return json.loads(Tokenizer(models.BPE(vocab, [], byte_fallback=True)).to_str())


def part(tool: Any) -> Any:
    inner = Tokenizer(models.BPE())
    if isinstance(tool, normalizers.Normalizer):
        inner.normalizer = tool
        return json.loads(inner.to_str())["normalizer"]
    inner.pre_tokenizer = tool
    return json.loads(inner.to_str())["pre_tokenizer"]


def added(**flags: bool) -> list[dict[str, Any]]:
    return [{"content": "<end of text>", "lstrip": False, "rstrip": False} | flags]


def cut(behavior: str) -> Any:
    split = pre_tokenizers.Split(Regex(r"\s"), behavior)
    return part(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (byte_level, 4),
        # A byte token is written with six signs; a space with a sign of 3 bytes.
        (with_bytes, 6),
        (lambda: byte_level(normalizer=part(normalizers.NFC())), 12),
        (lambda: byte_level(added_tokens=added()), 13),
        (lambda: byte_level(pre_tokenizer=cut("isolated")), 4),
        (lambda: byte_level(normalizer=part(normalizers.Replace(" ", "_"))), 4),
        # These may leave out, or take together, any number of characters.
        (lambda: byte_level(pre_tokenizer=cut("removed")), None),
        (lambda: byte_level(added_tokens=added(lstrip=True)), None),
        (lambda: byte_level(normalizer=part(normalizers.Lowercase())), None),
        (lambda: byte_level(normalizer=part(normalizers.Replace("ab", "c"))), None),
        (lambda: byte_level(normalizer=part(normalizers.Replace(" ", ""))), None),
        (lambda: byte_level(pre_tokenizer=None), None),
        (lambda: json.loads(Tokenizer(models.WordPiece({"a": 0})).to_str()), None),
    ],
)
def test_the_number(make: Callable[[], dict[str, Any]], expected: int | None) -> None:
    assert max_token_bytes(make()) == expected
