"""Text of a growing token sequence, piece by piece, where no piece is ever taken back."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes, so at most this many tokens can wait for its last one.
MAX_WAITING = 3
CONTEXT_TOKENS = 6


class Detokenizer:
    """Turns one sequence's tokens into text as they come. Owned by one thread.

    A token may hold a part of a character, and how it is written may depend on the ones
    before it (a leading space). So the tokens not yet given wait until their text is whole,
    and are decoded together with those given last.

    Invariant: the pieces given so far, joined, never change.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        """Start after a prompt.

        Args:
            decode: Gives the text of tokens.
            prompt: Tokens before the first new one; their text is not given again.
        """
        self._decode = decode
        self._context = list(prompt[-CONTEXT_TOKENS:])
        self._context_text = decode(self._context)
        self._waiting: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Take new tokens, and give the text that is now certain, perhaps none."""
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """Give what still waits, broken or not; call it once, after the last token."""
        text = self._waiting_text()
        self._waiting = []
        return text

    def _push_one(self, token_id: int) -> str:
        self._waiting.append(token_id)
        text = self._waiting_text()
        if text.endswith(REPLACEMENT):
            return self._give_broken() if len(self._waiting) > MAX_WAITING else ""
        if not text:
            # A token without text is no context for the next one.
            self._waiting.pop()
            return ""
        self._context, self._waiting = self._waiting, []
        self._context_text = self._decode(self._context)
        return text

    def _waiting_text(self) -> str:
        text = self._decode(self._context + self._waiting)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # Some decoders show a whole run of bytes as broken if its last character is.
        return self._decode(self._waiting)

    def _give_broken(self) -> str:
        """Give the start of what waits: too much does for it to become a character."""
        tokens = self._waiting
        text = self._decode(tokens)
        splits = range(1, len(tokens))
        texts = ((at, self._decode(tokens[:at]), self._decode(tokens[at:])) for at in splits)
        # Where the halves' texts are not the whole's, a character is cut in two.
        at, given = next(
            ((at, first) for at, first, second in texts if first + second == text),
            (len(tokens), text),
        )
        self._context, self._context_text, self._waiting = [], "", tokens[at:]
        return given
