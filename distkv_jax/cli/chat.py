"""`distkv chat`: a conversation, line by line, from a terminal or a pipe."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from rich.console import Console

from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.open_llm import open_llm
from distkv_jax.cli.parser import CHAT_MAX_TOKENS
from distkv_jax.cli.report import print_report
from distkv_jax.cli.watch import watch_pool
from distkv_jax.cli.write_text import TextWriter
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import RequestError
from distkv_jax.llm import LLM

WELCOME = "Say something. /reset forgets, /exit leaves."
COMMANDS = ("/exit", "/reset")


class Conversation:
    """What was said so far; each turn is generated from all of it.

    Attributes:
        turns: What the person said, with the output it got; a reset does not forget them.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._writer = TextWriter(has_headings=False, shows_ids=False)
        self.turns: list[tuple[str, RequestOutput]] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._opening)

    def say(self, text: str) -> None:
        """Print the model's reply as it comes, and remember both turns.

        Raises:
            RequestError: The conversation cannot be served; this turn is forgotten.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        prompt = self._llm.chat_tokens(messages)
        num_written, output = 0, None
        with contextlib.closing(self._llm.stream(prompt, self._params)) as stream:
            for output in stream:
                num_written = self._writer.write_new(output.outputs[0], num_written)
        assert output is not None  # a stream gives at least its end
        self._writer.end(output.outputs[0])
        self.turns.append((text, output))
        self._messages = [*messages, {"role": "assistant", "content": output.outputs[0].text}]


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends.

    Returns:
        0.

    Raises:
        DistKVError: The model cannot be loaded; or a turn was refused and nobody is there to
            try another.
    """
    sampling = given_fields(args, SamplingParams)
    sampling.setdefault("max_tokens", CHAT_MAX_TOKENS)
    if SamplingParams(**sampling).n > 1:
        raise RequestError(f"n={sampling['n']} must be 1 in a conversation")
    with open_llm(args) as llm, contextlib.ExitStack() as watching:
        params = dataclasses.replace(llm.get_default_sampling_params(), **sampling)
        peak = watching.enter_context(watch_pool(llm)) if args.stats else None
        conversation = Conversation(llm, params, args.system)
        talk(conversation, is_interactive=sys.stdin.isatty())
        watching.close()
        if peak is not None and conversation.turns:
            outputs = [output for _, output in conversation.turns]
            names = {output.request_id: text for text, output in conversation.turns}
            print_report(
                Console(stderr=True, highlight=False), llm.stats(), outputs, names, peak.view
            )
    return 0


def talk(conversation: Conversation, *, is_interactive: bool) -> None:
    """Answer every line until `/exit` or the end of the input.

    Raises:
        RequestError: A turn was refused, and nobody is there to try another.
    """
    for line in read_lines(is_interactive):
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            print(f"unknown command {line}, known: {', '.join(COMMANDS)}", file=sys.stderr)
        elif line:
            try:
                conversation.say(line)
            except RequestError as error:
                if not is_interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)


def read_lines(is_interactive: bool) -> Iterator[str]:
    """Give the lines that were typed or piped in, without the space around them."""
    if not is_interactive:
        yield from map(str.strip, sys.stdin)
        return
    with contextlib.suppress(ImportError):
        # Importing it gives `input` line editing and history.
        import readline  # noqa: F401
    print(WELCOME, file=sys.stderr)
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
