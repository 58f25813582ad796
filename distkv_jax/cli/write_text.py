"""Generated text as a person reads it, whole or piece by piece, and as JSON."""

import dataclasses
import sys

from rich.console import Console
from rich.text import Text

from distkv_jax.cli.picture import mark_of
from distkv_jax.engine.outputs import CompletionOutput, PositionLogprobs, RequestOutput

NAME_LENGTH = 48


class TextWriter:
    """Prints samples one after the other, each below a heading where there are several."""

    def __init__(self, *, has_headings: bool, shows_ids: bool) -> None:
        """Start with nothing written.

        Args:
            has_headings: Whether samples must be told apart.
            shows_ids: Write token ids instead of text.
        """
        self._file = sys.stdout
        # Headings alone go through rich: generated text must arrive as it is.
        self._console = Console(highlight=False, soft_wrap=True)
        self._has_headings = has_headings
        self._shows_ids = shows_ids

    def write_output(self, position: int, output: RequestOutput) -> None:
        """Write all samples of a finished request."""
        for sample in output.outputs:
            self.begin(position, output, sample)
            self.write_new(sample, 0)
            self.end(sample)

    def begin(self, position: int, output: RequestOutput, sample: CompletionOutput) -> None:
        """Write a sample's heading: its letter in the picture, and the end of its prompt."""
        if self._has_headings:
            letter, style = mark_of(position)
            number = f" sample {sample.index}" if len(output.outputs) > 1 else ""
            heading = Text.assemble((f" {letter} ", style), (f"{number} {name_of(output)}", "bold"))
            self._console.print(heading)

    def write_new(self, sample: CompletionOutput, num_written: int) -> int:
        """Write what came after the first `num_written` characters; returns how many there are."""
        text = " ".join(map(str, sample.token_ids)) if self._shows_ids else sample.text
        self._file.write(text[num_written:])
        self._file.flush()
        return len(text)

    def end(self, sample: CompletionOutput) -> None:
        """End a sample's text, and list its log-probabilities if they were asked for."""
        self._file.write("\n")
        for token, entry in zip(sample.token_ids, sample.logprobs or (), strict=False):
            self._file.write(f"{logprob_line(token, entry)}\n")
        if self._has_headings:
            self._file.write("\n")


def name_of(output: RequestOutput) -> str:
    """Call a request by the end of its prompt, which is what its text continues."""
    text = output.prompt
    if text is None:
        text = f"token ids {' '.join(map(str, output.prompt_token_ids))}"
    return tail_of(" ".join(text.split()), NAME_LENGTH)


def tail_of(text: str, length: int) -> str:
    """Keep the last words of a text, as many as fit into `length` characters."""
    if len(text) <= length:
        return text
    kept = text[3 - length :]
    return f"...{kept[kept.find(' ') + 1 :]}"


def logprob_line(token: int, entry: PositionLogprobs) -> str:
    """Write one position: the token chosen, then the most likely others."""
    others = [key for key in sorted(entry, key=lambda key: entry[key].rank) if key != token]
    return "  ".join(
        f"{entry[key].logprob:8.3f} "
        + (f"{key}" if (text := entry[key].decoded_token) is None else repr(text))
        for key in (token, *others)
    )


def json_of(output: RequestOutput) -> dict[str, object]:
    """Give a request's output as JSON has it: times as seconds since the request came."""
    fields = dataclasses.asdict(output)
    metrics = output.metrics
    fields["metrics"] = {
        name: None if time is None else time - metrics.arrival_time
        for name, time in (
            ("time_to_first_token_s", metrics.first_token_time),
            ("latency_s", metrics.finished_time),
        )
    }
    return fields
