"""Text to token ids and back, as a checkpoint's tokenizer files say."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from distkv_jax.errors import ConfigError, RequestError
from distkv_jax.models.chat_template import TEMPLATE, ChatTemplate, read_template
from distkv_jax.models.detokenizer import Detokenizer
from distkv_jax.models.json_file import read_json
from distkv_jax.models.token_bytes import max_token_bytes

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")

SHORT_TEXT = 1024
"""Characters up to which handing a text to the library's threads costs more than it saves."""


class Tokenizer:
    """A checkpoint's `tokenizer.json` with its special tokens and chat template.

    Holds no state of its own between calls; safe to use from several threads.

    Attributes:
        bos_id: Token that starts a text, or None.
        eos_id: Token that ends a text, or None.
        special_ids: Tokens that are not text, left out by `skip_special_tokens`.
        max_token_bytes: Most bytes of a text that become one token; None where nobody can tell.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        settings: Mapping[str, object] | None = None,
        template: str | None = None,
    ) -> None:
        """Wrap a tokenizer.

        Args:
            inner: The tokenizer; its padding and truncation are switched off.
            settings: Content of `tokenizer_config.json`.
            template: Chat template, in Jinja.

        Raises:
            ConfigError: The template is not Jinja.
        """
        settings = {} if settings is None else settings
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        special = {name: text for name in SPECIAL if (text := _content(settings.get(name)))}
        self.bos_id = self._id_of(special.get("bos_token"))
        self.eos_id = self._id_of(special.get("eos_token"))
        added = inner.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.max_token_bytes = max_token_bytes(json.loads(inner.to_str()))
        self._template = None if template is None else ChatTemplate(template, special)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Read a checkpoint's tokenizer; None if it has none.

        Raises:
            ConfigError: A file is damaged.
        """
        path = folder / TOKENIZER
        if not path.is_file():
            return None
        settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises no narrower type.
            raise ConfigError(f"{path} is damaged: {error}") from error
        return cls(inner, settings, read_template(folder, settings))

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows, added ones included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids.

        Args:
            text: Any text; special tokens written out in it are recognised.
            add_special_tokens: Add what `tokenizer.json` puts around a text, such as its
                first token; a rendered chat has them already. As in transformers 5, the
                `add_bos_token` of `tokenizer_config.json` does not overrule it.
        """
        if len(text) <= SHORT_TEXT:
            return self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        # Unlike `encode`, it lets other threads run meanwhile, and it does not count offsets.
        (encoding,) = self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text; bytes that are no text become replacement signs."""
        return self._inner.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(
        self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """Start turning a sequence into text piece by piece, after `prompt`."""
        return Detokenizer(
            lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens), prompt
        )

    def token_text(self, token_id: int) -> str:
        """Give one token's text alone, special or not, as log-probabilities show it."""
        return self.decode([token_id], skip_special_tokens=False)

    def apply_chat_template(
        self, messages: Sequence[object], *, add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as the text that the model expects.

        Encode it with `add_special_tokens=False`, as the template has written them.

        Raises:
            RequestError: The checkpoint has no template, or the template refuses.
        """
        if self._template is None:
            raise RequestError(
                f"the checkpoint has no chat template: send a prompt, or add {TEMPLATE} to it"
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._inner.token_to_id(token)


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Give the tokenizer where text is asked for.

    Raises:
        RequestError: There is none.
    """
    if tokenizer is None:
        raise RequestError(
            f"the checkpoint has no {TOKENIZER}: send token ids, or add {TOKENIZER} to it"
        )
    return tokenizer


def _content(token: object) -> str | None:
    """Read a special token's entry: its text, or an object with it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
