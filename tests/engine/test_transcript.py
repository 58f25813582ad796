"""The pieces of a transcript joined are the text up to the first stop string, and never change."""

from typing import Any

import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.engine.transcript import Transcript
from tests.engine.fakes import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def make_transcript(**params: Any) -> Transcript:
    return Transcript(TOKENIZER, [], SamplingParams(**params))


def push_all(transcript: Transcript, text: str, **options: Any) -> tuple[list[str], str | None]:
    """Push a text byte by byte; gives the pieces and the stop string that ended it."""
    pieces = []
    for token in TOKENIZER.encode(text):
        written = transcript.push(token, **options)
        pieces.append(written.text)
        if written.stop_string is not None:
            return pieces, written.stop_string
    return pieces, None


def test_pieces_are_whole_characters_and_their_sum_is_the_text() -> None:
    transcript = make_transcript()
    pieces, _ = push_all(transcript, "naïve ☃!")

    assert "".join(pieces) == "naïve ☃!"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert transcript.flush().text == ""


def test_an_unfinished_character_is_given_at_the_end() -> None:
    transcript = make_transcript()
    for token in TOKENIZER.encode("a☃")[:-1]:
        transcript.push(token)

    assert transcript.flush().text.strip("\N{REPLACEMENT CHARACTER}") == ""
    assert transcript.flush().text == ""


def test_a_stop_string_is_found_across_tokens_and_left_out() -> None:
    pieces, stop = push_all(make_transcript(stop="☃b"), "xa☃bc")

    assert ("".join(pieces), stop) == ("xa", "☃b")


def test_a_stop_string_is_kept_where_asked_for() -> None:
    pieces, stop = push_all(make_transcript(stop="ab", include_stop_str_in_output=True), "xabc")

    assert ("".join(pieces), stop) == ("xab", "ab")


@pytest.mark.parametrize("stops", [["ab☃", "☃"], ["☃", "ab☃"]])
def test_the_stop_string_that_begins_first_ends_the_text(stops: list[str]) -> None:
    pieces, stop = push_all(make_transcript(stop=stops), "xab☃")

    assert ("".join(pieces), stop) == ("x", "ab☃")


def test_a_false_start_of_a_stop_string_is_given_once_it_is_one() -> None:
    pieces, stop = push_all(make_transcript(stop="aab"), "aaab")

    assert ("".join(pieces), stop) == ("a", "aab")


def test_no_more_is_held_back_than_could_begin_a_stop_string() -> None:
    pieces, _ = push_all(make_transcript(stop=["ab", "wxyz"]), "0123456")

    assert pieces == ["", "", "", "0", "1", "2", "3"]


def test_what_was_held_back_is_given_at_the_end_once() -> None:
    transcript = make_transcript(stop="xyz")
    pieces, _ = push_all(transcript, "ax")

    assert "".join(pieces) + transcript.flush().text == "ax"
    assert transcript.flush().text == ""


def test_before_it_may_stop_a_stop_string_is_text() -> None:
    transcript = make_transcript(stop="ab")
    pieces, stop = push_all(transcript, "ab", may_stop=False)
    assert ("".join(pieces), stop) == ("ab", None)

    pieces, stop = push_all(transcript, "cab")

    assert ("".join(pieces), stop) == ("c", "ab")


@pytest.mark.parametrize(("skips", "expected"), [(True, "ab"), (False, "a</s>b")])
def test_special_tokens_are_text_only_where_asked_for(skips: bool, expected: str) -> None:
    transcript = make_transcript(skip_special_tokens=skips)
    (first,), (last,) = TOKENIZER.encode("a"), TOKENIZER.encode("b")

    text = "".join(transcript.push(token).text for token in (first, EOS, last))

    assert text == expected
