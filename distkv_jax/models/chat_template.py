"""A checkpoint's chat template, rendered in a sandbox that cannot reach Python."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distkv_jax.errors import ConfigError, RequestError

TEMPLATE = "chat_template.jinja"


class ChatTemplate:
    """Writes a conversation as the text its model was trained on.

    Source: transformers, utils/chat_template_utils.py; the same filters and functions.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: The template.
            special_tokens: What `bos_token` and its like stand for in it.

        Raises:
            ConfigError: The template is not Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[object], *, add_generation_prompt: bool = True) -> str:
        """Render a conversation.

        Args:
            messages: Each has a `role`, mostly with `content`; at least one.
            add_generation_prompt: End with what starts the model's own turn.

        Raises:
            RequestError: The messages are not ones the template can take.
        """
        if not messages:
            raise RequestError("messages is empty, expected at least 1")
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(
                    f"message {number} is {message!r}, expected a role and a content"
                )
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        # A template is a program from outside: it may also add a string to a number.
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise RequestError(f"the chat template refused the messages: {error}") from error


def read_template(folder: Path, settings: Mapping[str, object]) -> str | None:
    """Find a checkpoint's chat template: its own file, else an entry of `tokenizer_config.json`.

    Args:
        folder: The checkpoint.
        settings: Content of `tokenizer_config.json`.
    """
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    entry = settings.get("chat_template")
    if isinstance(entry, list):
        named = {item["name"]: item["template"] for item in entry if isinstance(item, Mapping)}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None


class _GenerationBlock(Extension):
    """`{% generation %}` marks the model's words for training; here it is only its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Replace the block by its content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
