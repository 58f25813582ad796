"""How many bytes of a text one token can stand for, so that a text can be too long unread."""

from collections.abc import Mapping, Sequence
from typing import Any

COMPOSED = 3
"""NFC makes a text this much shorter at most, in UTF-8: three jamo of 3 bytes are a syllable of 3.

Source: Unicode Standard Annex 15, and its data: no composition is shorter.
"""
SPACES = {"Prepend", "Replace"}
CUTS = {"ByteLevel", "Digits", "Metaspace"}


def max_token_bytes(tokenizer: Mapping[str, Any]) -> int | None:
    """Read the number from a `tokenizer.json`.

    Only byte pair encodings that keep every byte have one; others drop characters, or make one
    unknown token of many.

    Returns:
        Bytes, or None where none can be given.
    """
    model = tokenizer["model"]
    added = tokenizer.get("added_tokens") or ()
    shrink = _shrinking(tokenizer.get("normalizer"))
    # Tokens that swallow the spaces beside them have no longest form.
    swallow = any(token["lstrip"] or token["rstrip"] for token in added)
    if model["type"] != "BPE" or shrink is None or swallow:
        return None
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not all(_is_whole(step) for step in steps):
        return None
    vocab = model["vocab"]
    if any(step["type"] == "ByteLevel" for step in steps):
        # Each byte is written as one character.
        if len({token for token in vocab if len(token) == 1}) < 256:
            return None
        longest = max(map(len, vocab))
    elif model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        longest = max(len(token.encode()) for token in vocab)
    else:
        return None
    return shrink * max(longest, *(len(token["content"].encode()) for token in added), 1)


def _steps(step: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    if step is None:
        return ()
    return step[inner] if step["type"] == "Sequence" else (step,)


def _shrinking(normalizer: Mapping[str, Any] | None) -> int | None:
    """Tell by what factor a text may get shorter; None where that is not known."""
    shrink = 1
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "NFC":
            shrink *= COMPOSED
        elif step["type"] == "Replace" and step["pattern"].get("String") != " ":
            return None
        elif step["type"] not in SPACES or step.get("content") == "":
            return None
    return shrink


def _is_whole(step: Mapping[str, Any]) -> bool:
    """Whether a step that cuts a text into words leaves nothing out."""
    return step["type"] in CUTS or step["type"] == "Split" and step["behavior"] != "Removed"
