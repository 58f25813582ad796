"""The text of a growing sequence, up to a stop string."""

from typing import NamedTuple

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.models.tokenizer import Tokenizer


class Written(NamedTuple):
    """What a new token did to the text.

    Attributes:
        text: New text that is certain; nothing given before is ever taken back.
        stop_string: The stop string that ended the text, or None.
    """

    text: str
    stop_string: str | None


class Transcript:
    """Turns tokens into text as they come, and finds stop strings across token borders.

    Text that could turn out to be the beginning of a stop string is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> None:
        self._detokenizer = tokenizer.detokenizer(
            prompt, skip_special_tokens=params.skip_special_tokens
        )
        self._stops = params.stop_strings
        self._keeps_stop = params.include_stop_str_in_output
        self._num_held_back = max((len(stop) - 1 for stop in self._stops), default=0)
        self._held = ""

    def push(self, token: int, *, may_stop: bool = True) -> Written:
        """Take a token; where it may not stop, a stop string is text like any other."""
        piece = self._detokenizer.push([token])
        if not may_stop:
            return Written(piece, None)
        return self._take(piece, self._num_held_back)

    def flush(self) -> Written:
        """Give what was held back, after the last token."""
        return self._take(self._detokenizer.flush(), 0)

    def _take(self, piece: str, num_held_back: int) -> Written:
        self._held += piece
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, stop = min(found)
            text = self._held[: at + len(stop) * self._keeps_stop]
            self._held = ""
            return Written(text, stop)
        certain = max(0, len(self._held) - num_held_back)
        text, self._held = self._held[:certain], self._held[certain:]
        return Written(text, None)
