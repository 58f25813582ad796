"""What a kept request gave, token by token: to go on from it, and to give it again from a token."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Known, Request
from distkv_jax.errors import ConfigError, DistKVError
from serve.errors import FieldError
from serve.journal.forms import Entry, entry_from, error_from, updates_from
from serve.journal.store import Kept
from serve.stream import Reach


class History(NamedTuple):
    """A kept request, read.

    Attributes:
        entry: What was asked.
        updates: What it gave, in the order in which it gave it.
        error: Why it ended before its time; None where it did not.
        has_ended: Whether it has ended.
    """

    entry: Entry
    updates: list[Update]
    error: DistKVError | None
    has_ended: bool

    @property
    def known(self) -> tuple[Known, ...]:
        """What each sample gave."""
        tokens: list[list[int]] = [[] for _ in range(self.entry.params.n)]
        ended = [False] * len(tokens)
        for update in self.updates:
            tokens[update.index].extend(update.token_ids)
            ended[update.index] |= update.finish_reason is not None
        return tuple(map(Known, map(tuple, tokens), ended))

    @property
    def reach(self) -> tuple[Reach, ...]:
        """How far each sample came."""
        return tuple(Reach(len(tokens), has_ended) for tokens, has_ended in self.known)


def history_of(kept: Kept, path: Path) -> History:
    """Read a kept request.

    Args:
        kept: As it is in the file.
        path: Of the file, for the error.

    Raises:
        ConfigError: It is not what this release wrote.
    """
    try:
        entry = entry_from(kept.caller, kept.name, kept.entry)
        request = Request(
            request_id=kept.name, prompt_token_ids=entry.prompt_token_ids, params=entry.params
        )
        updates = [update for piece in kept.pieces for update in updates_from(request, piece)]
        if not all(0 <= update.index < entry.params.n for update in updates):
            raise ValueError(f"a sample is not within 0..{entry.params.n - 1}")
        error = None if kept.error is None else error_from(kept.error)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"journal {path} has a request {kept.name!r} that cannot be read: {error}"
        ) from error
    return History(entry, updates, error, kept.ended is not None)


def cut(updates: Iterable[Update], offsets: Sequence[int], reach: Sequence[Reach]) -> list[Update]:
    """Take what came from given tokens on, as far as the samples are known.

    Each token comes with the text that it made certain, which may be that of tokens before it; so
    what is left out and what is taken, put together, is the unbroken stream.

    Args:
        updates: All there are.
        offsets: Of each sample, how many tokens are left out.
        reach: Of each sample, how far to go; what is beyond comes by another way.
    """
    seen = [0] * len(reach)
    taken = []
    for update in updates:
        index, count = update.index, len(update.token_ids)
        place = seen[index]
        seen[index] += count
        # Only the last update of a sample may be without a token.
        is_known = place < reach[index].num_tokens if count else reach[index].has_ended
        if is_known and (place >= offsets[index] or not count):
            taken.append(update)
        elif is_known and update.finish_reason is not None:
            # Its token is known to the reader, who may not know that it was the last one.
            taken.append(update._replace(token_ids=(), text="", logprobs=()))
    return taken


def full_offsets(offsets: Sequence[int], reach: Sequence[Reach]) -> list[int]:
    """Give each sample its offset, 0 where none was given.

    Args:
        offsets: As given, the first sample's first.
        reach: How far each sample has come.

    Raises:
        FieldError: There are more than samples, or one is beyond what there is.
    """
    if len(offsets) > len(reach):
        raise FieldError(f"offsets has {len(offsets)} entries, limit {len(reach)}", "offsets")
    full = [*offsets, *[0] * (len(reach) - len(offsets))]
    for index, (offset, one) in enumerate(zip(full, reach, strict=True)):
        if not 0 <= offset <= one.num_tokens:
            raise FieldError(
                f"offset={offset} of sample {index} must be within 0..{one.num_tokens}, the tokens "
                "it has",
                "offsets",
            )
    return full
