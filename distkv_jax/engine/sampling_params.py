"""What a request asks of sampling: vLLM's names and defaults, checked at birth."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Self, TypeGuard, no_type_check

from distkv_jax.errors import RequestError

MAX_N = 64
"""Samples of one prompt."""
MAX_LOGPROBS = 20
"""Most likely tokens reported at a position, of the output or of the prompt."""
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
"""Entries of `logit_bias`."""
MAX_ALLOWED_TOKEN_IDS = 65_536
MAX_BAD_WORDS = 32
BAD_WORD_TOKENS = 8
"""Tokens of a bad word, once tokenised."""
BAD_WORD_FORMS = 2 * MAX_BAD_WORDS
"""Token lists the bad words of a request may have: each has one at a text's start, one after."""
MIN_TEMPERATURE = 1e-5
"""Temperatures below this are greedy."""

_INT32_MAX = 2**31 - 1


# Run-time type checks would refuse a wrong type before `__post_init__` can name what is allowed.
@no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of a request are chosen, and what ends it.

    Lists are kept as tuples. Raises `RequestError` for a value or a keyword that is not allowed.

    Attributes:
        n: Samples of the prompt, up to `MAX_N`.
        presence_penalty: Subtracted once from the logit of every token in the output; [-2, 2].
        frequency_penalty: Subtracted as often as the token is in the output; [-2, 2].
        repetition_penalty: Divides positive logits and multiplies negative ones of every token in
            the prompt or the output; above 0.
        temperature: Divides the logits; 0 is greedy.
        top_p: Least probability that the kept most likely tokens have together; (0, 1].
        top_k: Most likely tokens to keep; 0 or -1 keeps all.
        min_p: Least probability of a kept token, as a share of the most likely one's; [0, 1].
        seed: 64 bits, signed or not; None draws anew for each request.
        stop: Strings that end the output.
        stop_token_ids: Tokens that end the output.
        ignore_eos: Go on after the model's end token.
        max_tokens: Most tokens of the output; None goes on to the model's limit.
        min_tokens: Tokens of the output before an end token or stop token is allowed.
        logprobs: Most likely tokens to report at each position besides the chosen one.
        prompt_logprobs: The same for the prompt.
        detokenize: Make text of the output.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Keep the stop string in the text.
        logit_bias: Added to the logits of these tokens; [-100, 100].
        allowed_token_ids: The only tokens allowed.
        bad_words: Words not allowed, each with and without a space before it.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None

    def __new__(cls, **given: object) -> Self:
        """Refuse unknown keywords by name, which the generated `__init__` would not."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise RequestError(
                f"unknown sampling parameters: {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return object.__new__(cls)

    def __post_init__(self) -> None:
        self._check_integer("n", 1, MAX_N)
        self._check_real("presence_penalty", "within [-2, 2]", lambda x: -2 <= x <= 2)
        self._check_real("frequency_penalty", "within [-2, 2]", lambda x: -2 <= x <= 2)
        self._check_real("repetition_penalty", "above 0", lambda x: x > 0)
        self._check_real("temperature", "at least 0", lambda x: x >= 0)
        self._check_real("top_p", "within (0, 1]", lambda x: 0 < x <= 1)
        self._check_integer("top_k", -1, _INT32_MAX)
        self._check_real("min_p", "within [0, 1]", lambda x: 0 <= x <= 1)
        self._check_integer("seed", -(2**63), 2**64 - 1, optional=True)
        self._check_integer("max_tokens", 1, _INT32_MAX, optional=True)
        self._check_integer("min_tokens", 0, _INT32_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} must be at most max_tokens={self.max_tokens}"
            )
        self._check_integer("logprobs", 0, MAX_LOGPROBS, optional=True)
        self._check_integer("prompt_logprobs", 0, MAX_LOGPROBS, optional=True)
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "include_stop_str_in_output",
        ):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name}={getattr(self, name)!r} must be True or False")
        if isinstance(self.stop, str):
            self._set("stop", (self.stop,))
        self._check_strings("stop", MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        if self.stop and not self.detokenize:
            raise RequestError("stop strings need detokenize=True, given False")
        self._check_strings("bad_words", MAX_BAD_WORDS, MAX_STOP_STRING_CHARS)
        self._check_token_ids("stop_token_ids", MAX_STOP_TOKEN_IDS)
        self._check_token_ids("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty, must have at least 1 entry or be None")
        self._check_logit_bias()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end the output."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def adjusts_logits(self) -> bool:
        """Whether something besides the logits decides: the sequence's slot must be set then."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
            or self.min_tokens
            or self.logit_bias
            or self.allowed_token_ids
            or self.bad_words
        )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_integer(self, name: str, low: int, high: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not _is_integer(value) or not low <= int(value) <= high:
            allowed = f"an integer within {low}..{high}{' or None' if optional else ''}"
            raise RequestError(f"{name}={value!r} must be {allowed}")
        self._set(name, int(value))

    def _check_real(self, name: str, allowed: str, accepts: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if not _is_finite(value) or not accepts(value):
            raise RequestError(f"{name}={value!r} must be a finite number {allowed}")
        self._set(name, float(value))

    def _check_entries(self, name: str, kind: str, max_entries: int) -> tuple[object, ...]:
        """Return a list parameter as a tuple."""
        given = getattr(self, name)
        if isinstance(given, str | bytes) or not isinstance(given, Sequence | Set):
            raise RequestError(f"{name}={given!r} must be a list of {kind}")
        entries = tuple(given)
        if len(entries) > max_entries:
            raise RequestError(f"{name} has {len(entries)} entries, limit {max_entries}")
        return entries

    def _check_strings(self, name: str, max_entries: int, max_chars: int) -> None:
        if getattr(self, name) is None:
            return
        entries = self._check_entries(name, "strings", max_entries)
        texts = tuple(entry for entry in entries if isinstance(entry, str) and entry)
        if len(texts) < len(entries):
            raise RequestError(f"{name}={list(entries)!r} must be non-empty strings")
        longest = max(map(len, texts), default=0)
        if longest > max_chars:
            raise RequestError(f"{name} has a string of {longest} characters, limit {max_chars}")
        self._set(name, tuple(dict.fromkeys(texts)))

    def _check_token_ids(self, name: str, max_entries: int) -> None:
        if getattr(self, name) is None:
            return
        entries = self._check_entries(name, "token ids", max_entries)
        self._set(name, tuple(dict.fromkeys(_token_id(name, entry) for entry in entries)))

    def _check_logit_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias={self.logit_bias!r} must map token ids to numbers")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries, limit {MAX_LOGIT_BIAS}"
            )
        biases = {}
        for token, bias in self.logit_bias.items():
            if not _is_finite(bias) or not -100 <= bias <= 100:
                raise RequestError(
                    f"logit_bias of token {token!r} is {bias!r}, must be within [-100, 100]"
                )
            biases[_token_id("logit_bias", token)] = float(bias)
        self._set("logit_bias", biases)


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        RequestError: `stop_token_ids`, `allowed_token_ids` or `logit_bias` names such an id.
    """
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        largest = max(getattr(params, name) or (), default=-1)
        if largest >= vocab_size:
            raise RequestError(f"{name} has token id {largest}, the model has 0..{vocab_size - 1}")


def tokenize_bad_words(
    words: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Turn bad words into the token lists to ban, at most `BAD_WORD_FORMS`.

    A word after a space counts when it has another first token and as many tokens, as in vLLM:
    otherwise the form without the space, or none, catches it.

    Args:
        words: `SamplingParams.bad_words`.
        encode: Text to token ids, without special tokens.

    Raises:
        RequestError: A word has no tokens, or more than `BAD_WORD_TOKENS`.
    """
    forms: list[tuple[int, ...]] = []
    for word in words:
        plain, spaced = (tuple(encode(space + word.lstrip())) for space in ("", " "))
        if not 1 <= len(plain) <= BAD_WORD_TOKENS:
            raise RequestError(
                f"bad word {word!r} has {len(plain)} tokens, allowed 1..{BAD_WORD_TOKENS}"
            )
        forms.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            forms.append(spaced)
    return tuple(forms)


def _is_integer(value: object) -> TypeGuard[numbers.Integral]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _token_id(name: str, value: object) -> int:
    if not _is_integer(value) or int(value) < 0:
        raise RequestError(f"{name} has {value!r}, must be integers of at least 0")
    return int(value)
