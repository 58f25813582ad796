"""A conversation is generated from all that was said, until it is reset."""

import io

import pytest

from distkv_jax.llm import LLM
from tests.cli.conftest import Run

FLAGS = ("--temperature", "0", "--max-tokens", "5")


@pytest.fixture
def asked(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """All conversations that were turned into tokens."""
    seen = []
    tokens = llm.chat_tokens
    monkeypatch.setattr(
        llm, "chat_tokens", lambda messages: [seen.append(list(messages)), tokens(messages)][1]
    )
    return seen


def say(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_each_turn_has_all_turns_before_it(
    run: Run,
    asked: list[list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    say(monkeypatch, "Good morning.", "", "And then?")
    code = run("chat", *FLAGS, "--system", "Be kind.")
    first_reply = asked[1][2]["content"]

    assert code == 0
    assert [[one["role"] for one in messages] for messages in asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert first_reply and capsys.readouterr().out.startswith(f"{first_reply}\n")


def test_reset_forgets_and_exit_leaves(
    run: Run, asked: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
):
    say(monkeypatch, "One.", "/reset", "Two.", "/exit", "Three.")
    run("chat", *FLAGS)

    assert [[one["content"] for one in messages] for messages in asked] == [["One."], ["Two."]]


def test_unknown_commands_are_named_and_not_said(
    run: Run,
    asked: list[list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    say(monkeypatch, "/rest")
    run("chat", *FLAGS)

    assert asked == []
    assert capsys.readouterr().err == "unknown command /rest, known: /exit, /reset\n"


def test_a_refused_turn_ends_a_piped_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    say(monkeypatch, "word " * 400)

    assert run("chat", *FLAGS) == 2
    assert "2 instances together hold 256 for one request" in capsys.readouterr().err


def test_samples_are_refused(run: Run, capsys: pytest.CaptureFixture[str]):
    assert run("chat", "-n", "2") == 2
    assert "error: n=2 must be 1 in a conversation" in capsys.readouterr().err
