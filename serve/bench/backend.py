"""What every kind of server gives the one who measures: an answer in pieces, or why there is none.

A backend turns what comes over the wire into `Piece`s and its errors into `Failed`; it takes no
times.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

from serve.bench.workload import Item


class Failed(Exception):
    """A request that failed; the text says how, and counts equal texts together."""


class Usage(NamedTuple):
    """What the server counted.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens it generated.
    """

    prompt_tokens: int
    output_tokens: int


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        text: New text, may be empty: some tokens have none.
        is_output: Whether the model made it; else it only tells usage.
        usage: Where this piece tells it.
    """

    text: str = ""
    is_output: bool = True
    usage: Usage | None = None


class About(NamedTuple):
    """What a server says of itself.

    Attributes:
        model: The name to ask for.
        vocab_size: Token ids it takes are below this; None if it does not say.
        version: Its release; None if it does not say.
    """

    model: str
    vocab_size: int | None = None
    version: str | None = None


class Backend(Protocol):
    """A connection to a server."""

    async def about(self) -> About:
        """Ask what is served.

        Raises:
            DistKVError: It cannot be reached, refuses, or serves nothing.
        """
        ...

    def prepare(self, item: Item, model: str) -> Any:
        """Write a request, so that writing it is not measured."""
        ...

    def stream(self, request: Any) -> AsyncIterator[Piece]:
        """Send what `prepare` wrote.

        Raises:
            Failed: There is no whole answer.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...
