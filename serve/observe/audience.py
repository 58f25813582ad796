"""All observers of a server: each is called only for what it wants to hear of."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from serve.observe.record import Observer, Record

logger = logging.getLogger(__name__)


class Audience:
    """Tells observers, in their order; what one of them raises is logged and reaches nobody.

    A token has a gap: calls that do nothing would be the larger part of what it costs.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        """Sort observers by the methods they override.

        Args:
            observers: Who hears.
        """
        self.observers = tuple(observers)
        self._on_begin = hearers(observers, Observer.on_begin)
        self._on_first_token = hearers(observers, Observer.on_first_token)
        self._on_gap = hearers(observers, Observer.on_gap)
        self._on_end = hearers(observers, Observer.on_end)

    def begin(self, record: Record) -> None:
        """Tell that a request came."""
        tell(self._on_begin, record)

    def first_token(self, record: Record) -> None:
        """Tell that a request has its first token."""
        tell(self._on_first_token, record)

    def gap(self, record: Record, seconds: float) -> None:
        """Tell that a sample has a token more, so many seconds after the one before."""
        tell(self._on_gap, record, seconds)

    def end(self, record: Record) -> None:
        """Tell that a request is over."""
        tell(self._on_end, record)


def hearers(
    observers: Sequence[Observer], method: Callable[..., None]
) -> tuple[Callable[..., None], ...]:
    """Bind a method of `Observer` for those that override it."""
    name = method.__name__
    return tuple(getattr(one, name) for one in observers if getattr(type(one), name) is not method)


def tell(hearers: Sequence[Callable[..., None]], *values: Any) -> None:
    """Call all, also when one fails."""
    for hear in hearers:
        try:
            hear(*values)
        except Exception:
            logger.exception("an observer failed")
