"""Turning what a step sampled into tokens, text and ends of sequences."""

import numpy as np

from distkv_jax.engine.encode import Expected
from distkv_jax.engine.outputs import Logprob, PositionLogprobs, Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.sampler import Sampled
from distkv_jax.engine.sequence import FinishReason, Sequence
from distkv_jax.engine.transcript import Transcript, Written
from distkv_jax.models.tokenizer import Tokenizer


class Collector:
    """Keeps each live sequence's text, appends its tokens, and decides what ends it.

    It frees nothing: whoever calls it takes finished sequences out of the scheduler.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._transcripts: dict[Sequence, Transcript] = {}

    def begin(self, sequence: Sequence) -> None:
        """Start the text of a new sequence; what it knows already is written and not given."""
        params = sequence.params
        if self._tokenizer is None or not params.detokenize:
            return
        prompt = sequence.tokens[: sequence.prompt_len]
        transcript = self._transcripts[sequence] = Transcript(self._tokenizer, prompt, params)
        for count, token in enumerate(sequence.output_tokens, start=1):
            transcript.push(token, may_stop=count >= params.min_tokens)

    def score(self, row: Expected, sampled: Sampled) -> None:
        """Keep a prompt token's log-probability; a position scored before a restart stays."""
        sequence = row.sequence
        if row.position == len(sequence.prompt_logprobs) + 1:
            count = sequence.params.prompt_logprobs or 0
            sequence.prompt_logprobs.append(self._logprobs_at(row, sampled, count))

    def append(
        self, request: Request, row: Expected, token: int, sampled: Sampled | None
    ) -> Update:
        """Add a sampled token to its sequence, and end the sequence if that token or its text does.

        Returns:
            The update for the caller, with the finish reason if it ended.
        """
        sequence, params = row.sequence, row.sequence.params
        is_first = len(sequence.tokens) == sequence.prompt_len
        sequence.tokens.append(token)
        text, stop_string = self._write(sequence, token)
        finish_reason, stop_reason = None, None
        if token in sequence.stop_ids:
            named = token in (params.stop_token_ids or ())
            finish_reason, stop_reason = FinishReason.STOP, token if named else None
        elif stop_string is not None:
            finish_reason, stop_reason = FinishReason.STOP, stop_string
        elif len(sequence.output_tokens) >= sequence.max_tokens:
            finish_reason = FinishReason.LENGTH
        if finish_reason is not None:
            sequence.finish(finish_reason, stop_reason)
            if stop_string is None:
                text += self._flush(sequence)
            self._transcripts.pop(sequence, None)
        logprobs = ()
        if params.logprobs is not None and sampled is not None:
            logprobs = (self._logprobs_at(row, sampled, params.logprobs),)
        return Update(
            request,
            sequence.key.index,
            (token,),
            text,
            logprobs,
            prompt_logprobs=prompt_logprobs(sequence) if is_first else None,
            finish_reason=None if finish_reason is None else finish_reason.value,
            stop_reason=stop_reason,
            instances_used=tuple(sequence.instances_used),
            remote_kv_tokens=sequence.max_remote_tokens,
            num_cached_tokens=sequence.num_shared_tokens,
            scheduled=sequence.scheduled,
        )

    def end(
        self, request: Request, sequence: Sequence, reason: FinishReason, error: str | None = None
    ) -> Update:
        """End a sequence from outside: cancelled, too late, failed. Its text so far is complete."""
        sequence.finish(reason)
        text = self._flush(sequence)
        self._transcripts.pop(sequence, None)
        return Update(
            request,
            sequence.key.index,
            text=text,
            finish_reason=reason.value,
            error=error,
            instances_used=tuple(sequence.instances_used),
            remote_kv_tokens=sequence.max_remote_tokens,
            num_cached_tokens=sequence.num_shared_tokens,
            scheduled=sequence.scheduled,
        )

    def _write(self, sequence: Sequence, token: int) -> Written:
        transcript = self._transcripts.get(sequence)
        params = sequence.params
        is_end = token in sequence.stop_ids
        if transcript is None or (is_end and not params.include_stop_str_in_output):
            return Written("", None)
        may_stop = len(sequence.output_tokens) >= params.min_tokens
        return transcript.push(token, may_stop=may_stop)

    def _flush(self, sequence: Sequence) -> str:
        transcript = self._transcripts.get(sequence)
        return "" if transcript is None else transcript.flush().text

    def _logprobs_at(self, row: Expected, sampled: Sampled, count: int) -> PositionLogprobs:
        """Report a row's own token and the `count` most likely ones, best first."""
        at = (row.instance, row.row)
        own = int(sampled.ids[at])
        entries = [(own, float(sampled.logprob[at]), int(sampled.rank[at]))]
        top = zip(sampled.top_ids[at][:count], sampled.top_logprobs[at][:count], strict=True)
        entries += [
            (int(token), float(np.float32(logprob)), rank)
            for rank, (token, logprob) in enumerate(top, start=1)
            if int(token) != own
        ]
        return {
            token: Logprob(logprob=logprob, rank=rank, decoded_token=self._text_of(token))
            for token, logprob, rank in sorted(entries, key=lambda entry: entry[2])
        }

    def _text_of(self, token: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token)


def prompt_logprobs(sequence: Sequence) -> tuple[PositionLogprobs | None, ...] | None:
    """A sequence's prompt log-probabilities, None for the first token; None if not asked for."""
    if sequence.params.prompt_logprobs is None or sequence.key.index:
        return None
    return (None, *sequence.prompt_logprobs)
