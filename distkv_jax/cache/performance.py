"""How long a step takes: measured tables, and the model that reads them."""

import bisect
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

from distkv_jax.errors import ConfigError


class Rate(NamedTuple):
    """How fast something goes at one size.

    Attributes:
        size: Tokens.
        per_s: Tokens per second at that size.
    """

    size: int
    per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What was measured on a machine, or assumed of it.

    Source: T = W(β)/f(β) + Σ S/g(S) of Infinite-LLM, <https://arxiv.org/abs/2401.02669>; what
    communication and copies cost is ours.

    Attributes:
        tokens_per_s: f: tokens through everything but attention, by an instance's batch.
        kv_tokens_per_s: g: KV tokens attended to, by context on one instance.
        spanning_step_s: What a step costs more when any query travels.
        spanning_tile_s: What each such query adds.
        copy_block_s: What moving a block costs the steps beside it.
    """

    tokens_per_s: tuple[Rate, ...]
    kv_tokens_per_s: tuple[Rate, ...]
    spanning_step_s: float
    spanning_tile_s: float
    copy_block_s: float

    def __post_init__(self) -> None:
        for name in ("tokens_per_s", "kv_tokens_per_s"):
            _check_rates(name, getattr(self, name))
        for name in ("spanning_step_s", "spanning_tile_s", "copy_block_s"):
            seconds = getattr(self, name)
            if not _is_number(seconds) or seconds < 0:
                raise ConfigError(f"{name}={seconds!r} must be a number of at least 0")

    @classmethod
    def linear(
        cls,
        *,
        tokens_per_s: float = 5e4,
        kv_tokens_per_s: float = 3e6,
        spanning_step_s: float = 2e-3,
        spanning_tile_s: float = 1e-5,
        copy_block_s: float = 1e-3,
    ) -> "Profile":
        """Assume rates that do not depend on size; the defaults suit 7B weights on one A100."""
        return cls(
            tokens_per_s=(Rate(1, tokens_per_s),),
            kv_tokens_per_s=(Rate(1, kv_tokens_per_s),),
            spanning_step_s=spanning_step_s,
            spanning_tile_s=spanning_tile_s,
            copy_block_s=copy_block_s,
        )

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a profile.

        Raises:
            ConfigError: It is no JSON, or a field is missing, unknown or out of range.
            OSError: It cannot be read.
        """
        try:
            fields = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from None
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            given = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ConfigError(f"{path} has {given}, expected {sorted(names)}")
        try:
            return cls(**{name: _as_rates(value) for name, value in fields.items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write a profile that `load` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


class StepModel:
    """Predicts a step's seconds: the slowest instance, and what travels between instances."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._batch = _Table(profile.tokens_per_s, floor=True)
        self._context = _Table(profile.kv_tokens_per_s, floor=False)

    def base_s(self, batch: int) -> float:
        """Everything but attention of an instance with `batch` tokens; a small batch is no
        faster than the smallest measured."""
        return self._batch.seconds(batch)

    def attention_s(self, context: int) -> float:
        """One token's attention over `context` tokens on one instance."""
        return self._context.seconds(context)

    def communication_s(self, num_spanning: int) -> float:
        """What `num_spanning` travelling queries add to a step."""
        if not num_spanning:
            return 0.0
        return self.profile.spanning_step_s + num_spanning * self.profile.spanning_tile_s


class _Table:
    """Seconds for a size: linear between the sizes measured, at the last one's rate beyond."""

    def __init__(self, rates: tuple[Rate, ...], *, floor: bool) -> None:
        first, last = rates[0], rates[-1]
        self._sizes = [rate.size for rate in rates]
        self._seconds = [rate.size / rate.per_s for rate in rates]
        self._last_rate = last.per_s
        if not floor:
            self._sizes.insert(0, 0)
            self._seconds.insert(0, 0.0)
        self._first_s = self._seconds[0]

    def seconds(self, size: int) -> float:
        at = bisect.bisect_right(self._sizes, size)
        if at == 0:
            return self._first_s
        if at == len(self._sizes):
            return self._seconds[-1] + (size - self._sizes[-1]) / self._last_rate
        low, high = self._sizes[at - 1], self._sizes[at]
        start, end = self._seconds[at - 1], self._seconds[at]
        return start + (end - start) * (size - low) / (high - low)


def _as_rates(value: object) -> object:
    """Read [[size, rate], ...]; anything else is left for the checks to refuse."""
    if not isinstance(value, list):
        return value
    return tuple(
        Rate(*item) if isinstance(item, list) and len(item) == 2 else item for item in value
    )


def _check_rates(name: str, rates: object) -> None:
    if not isinstance(rates, tuple) or not rates:
        raise ConfigError(f"{name}={rates!r} must be a list of [size, tokens per second]")
    for rate in rates:
        if (
            not isinstance(rate, Rate)
            or not isinstance(rate.size, int)
            or not _is_number(rate.per_s)
            or rate.size < 1
            or rate.per_s <= 0
        ):
            raise ConfigError(f"{name} has {rate!r}, expected [size, tokens per second] above 0")
    for lower, upper in itertools.pairwise(rates):
        if upper.size <= lower.size:
            raise ConfigError(f"{name} has size {upper.size} after {lower.size}, must increase")
        if upper.size / upper.per_s < lower.size / lower.per_s:
            raise ConfigError(f"{name} takes less time for {upper.size} than for {lower.size}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
