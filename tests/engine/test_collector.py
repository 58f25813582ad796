"""Sampled tokens become tokens, text and ends of sequences, each sequence ending once."""

from typing import Any

import numpy as np
import pytest

from distkv_jax.engine.collector import Collector
from distkv_jax.engine.encode import Expected
from distkv_jax.engine.outputs import Logprob, Update
from distkv_jax.engine.sequence import FinishReason, Sequence, State
from distkv_jax.errors import InvariantError
from distkv_jax.models.tokenizer import Tokenizer
from tests.engine.fakes import EOS, byte_tokenizer, make_request, make_sampled
from tests.engine.loop import make_sequence

TOKENIZER = byte_tokenizer()


class Case:
    """A collector with one sequence, and how to feed it."""

    def __init__(
        self, max_tokens: int = 9, tokenizer: Tokenizer | None = TOKENIZER, **params: Any
    ) -> None:
        self.request = make_request(5, max_tokens=max_tokens, **params)
        self.sequence: Sequence = make_sequence(5, max_tokens, **params)
        self.sequence.stop_ids = frozenset({EOS, *(params.get("stop_token_ids") or ())})
        self.collector = Collector(tokenizer)
        self.collector.begin(self.sequence)

    def row(self, position: int, *, is_sample: bool = True) -> Expected:
        return Expected(self.sequence, 1, 2, position, is_sample)

    def feed(self, token: int | str, *, reports: bool = False) -> Update:
        """Append a token; a letter stands for its own."""
        id_ = TOKENIZER.encode(token)[0] if isinstance(token, str) else token
        ids = np.zeros((2, 3), np.int32)
        ids[1, 2] = id_
        sampled = make_sampled(ids) if reports else None
        return self.collector.append(
            self.request, self.row(len(self.sequence.tokens)), id_, sampled
        )


def test_a_token_is_appended_with_its_text() -> None:
    case = Case()

    update = case.feed("a")

    assert (update.text, update.finish_reason, update.index) == ("a", None, 0)
    assert case.sequence.output_tokens == list(update.token_ids) == TOKENIZER.encode("a")
    assert case.sequence.state is not State.FINISHED


def test_the_last_allowed_token_ends_it_with_length() -> None:
    case = Case(max_tokens=2)

    assert case.feed("a").finish_reason is None
    assert case.feed("b").finish_reason == "length"
    assert case.sequence.state is State.FINISHED


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    update = Case(max_tokens=1, stop="a").feed("a")

    assert (update.finish_reason, update.stop_reason, update.text) == ("stop", "a", "")


def test_an_end_token_is_no_text_and_has_no_stop_reason() -> None:
    case = Case(skip_special_tokens=False)

    update = case.feed(EOS)

    assert (update.text, update.finish_reason, update.stop_reason) == ("", "stop", None)
    assert update.token_ids == (EOS,)


def test_a_stop_token_that_was_asked_for_is_the_stop_reason_and_is_text_only_where_asked() -> None:
    token = TOKENIZER.encode("b")[0]
    for keeps, text in ((False, ""), (True, "b")):
        case = Case(stop_token_ids=[token], include_stop_str_in_output=keeps)

        update = case.feed(token)

        assert (update.text, update.finish_reason, update.stop_reason) == (text, "stop", token)


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    case = Case(max_tokens=3, stop="xyz")
    assert case.feed("x").text == ""

    assert case.feed("y").text == ""
    assert case.feed("a").text == "xya"


def test_text_held_back_comes_with_an_end_from_outside() -> None:
    case = Case(stop="xyz")
    case.feed("x")

    update = case.collector.end(case.request, case.sequence, FinishReason.CANCELLED)

    assert (update.text, update.finish_reason, update.error) == ("x", "cancelled", None)
    assert case.sequence.finish_reason is FinishReason.CANCELLED


def test_an_error_from_outside_says_what_it_was() -> None:
    case = Case()

    update = case.collector.end(case.request, case.sequence, FinishReason.ERROR, "it burnt")

    assert (update.finish_reason, update.error) == ("error", "it burnt")


def test_a_sequence_ends_once() -> None:
    case = Case(max_tokens=1)
    case.feed("a")

    with pytest.raises(InvariantError, match="ended twice: FinishReason.LENGTH, then"):
        case.collector.end(case.request, case.sequence, FinishReason.CANCELLED)


def test_min_tokens_hold_for_stop_strings() -> None:
    case = Case(stop="a", min_tokens=2)

    assert case.feed("a").finish_reason is None
    update = case.feed("a")

    assert (update.finish_reason, update.text) == ("stop", "")


def test_logprobs_are_the_chosen_one_and_the_most_likely_best_first() -> None:
    update = Case(logprobs=2).feed("z", reports=True)

    (entry,) = update.logprobs
    chosen = TOKENIZER.encode("z")[0]
    assert list(entry) == [0, 1, chosen]
    assert entry[1] == Logprob(logprob=-1.0, rank=2, decoded_token=TOKENIZER.token_text(1))
    assert entry[chosen] == Logprob(logprob=-9.0, rank=10, decoded_token="z")


def test_a_chosen_token_among_the_most_likely_is_there_once() -> None:
    update = Case(logprobs=3).feed(1, reports=True)

    assert list(update.logprobs[0]) == [0, 2, 1]


def test_without_being_asked_for_there_are_no_logprobs() -> None:
    update = Case().feed("z", reports=True)

    assert update.logprobs == ()
    assert update.prompt_logprobs is None


def test_without_a_tokenizer_there_is_no_text() -> None:
    update = Case(tokenizer=None, logprobs=1).feed("a", reports=True)

    assert update.text == ""
    assert [one.decoded_token for one in update.logprobs[0].values()] == [None, None]


def test_prompt_logprobs_come_once_with_the_first_token_and_scores_are_kept_once() -> None:
    case = Case(prompt_logprobs=1)
    sampled = make_sampled(np.full((2, 3), 7, np.int32))
    # As after a restart in the middle of the prompt: 1 to 3, then all of them again.
    for position in (1, 2, 3, 1, 2, 3, 4):
        case.collector.score(case.row(position, is_sample=False), sampled)

    update = case.feed("a")

    assert update.prompt_logprobs is not None
    assert update.prompt_logprobs[0] is None
    assert [list(entry or {}) for entry in update.prompt_logprobs[1:]] == [[0, 7]] * 4
    assert case.feed("b").prompt_logprobs is None


def test_later_samples_leave_prompt_logprobs_to_the_first() -> None:
    case = Case(prompt_logprobs=1)
    case.sequence.key = case.sequence.key._replace(index=1)

    assert case.feed("a").prompt_logprobs is None
