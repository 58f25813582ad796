"""Prompts out of nothing: token ids that a model has, and texts of so many tokens."""

from pathlib import Path

import numpy as np
import tokenizers

from distkv_jax.errors import ConfigError
from serve.bench.workload import TokenIds

TEXT_ROUNDS = 10
"""Times a text is cut or filled up to get the tokens asked for; decoding is not exact."""


class Vocabulary:
    """Token ids that prompts may have, and texts where there is a tokenizer.

    Attributes:
        tokenizer: None without one.
    """

    def __init__(self, size: int, tokenizer: tokenizers.Tokenizer | None = None) -> None:
        """Take the ids below `size` that are not special to the tokenizer."""
        self.tokenizer = tokenizer
        special = set()
        if tokenizer is not None:
            added = tokenizer.get_added_tokens_decoder()
            special = {token_id for token_id, token in added.items() if token.special}
        ids = [token_id for token_id in range(size) if token_id not in special]
        if not ids:
            raise ConfigError(f"vocab_size={size} leaves no token ids to make prompts of")
        self._ids = np.array(ids, np.int32)

    def draw(self, rng: np.random.Generator, count: int) -> TokenIds:
        """Draw token ids, all equally likely."""
        return rng.choice(self._ids, count)

    def count(self, text: str) -> int:
        """Count a text's tokens, without those that a server puts around it."""
        assert self.tokenizer is not None
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text_of(self, ids: TokenIds, rng: np.random.Generator) -> tuple[str, int]:
        """Write token ids as text; says how many tokens that text has, if possible as many."""
        assert self.tokenizer is not None
        wanted, kept = len(ids), ids.tolist()
        text, num_tokens = "", 0
        for _ in range(TEXT_ROUNDS):
            text = self.tokenizer.decode(kept, skip_special_tokens=True)
            read = self.tokenizer.encode(text, add_special_tokens=False).ids
            num_tokens = len(read)
            if num_tokens == wanted:
                break
            kept = read[:wanted] + self.draw(rng, max(0, wanted - num_tokens)).tolist()
        return text, num_tokens


def read_tokenizer(path: str) -> tokenizers.Tokenizer:
    """Read a tokenizer.json, or the one in a folder.

    Raises:
        ConfigError: There is none, or it is not a tokenizer.
    """
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"tokenizer {path} must be a tokenizer.json or a folder with one")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
