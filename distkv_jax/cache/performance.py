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
        copy_block_s: What a block that leaves or reaches an instance costs the steps beside it;
            instances copy at the same time.
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
            if not 0 <= seconds < math.inf:
                raise ConfigError(f"{name}={seconds!r} must be a number of at least 0")

    @classmethod
    def linear(
        cls,
        *,
        step_s: float = 1e-2,
        token_s: float = 2e-5,
        kv_token_s: float = 3.5e-7,
        spanning_step_s: float = 2e-3,
        spanning_tile_s: float = 1e-5,
        copy_block_s: float = 2e-4,
    ) -> "Profile":
        """Assume that time grows linearly; the defaults are the size of 7B weights on one A100.

        Args:
            step_s: Reading the weights.
            token_s: Each token of the batch, above 0.
            kv_token_s: Each token attended to, above 0.
            spanning_step_s: As the attribute.
            spanning_tile_s: As the attribute.
            copy_block_s: As the attribute.
        """
        batches = (1, 1 << 20)
        return cls(
            tokens_per_s=tuple(
                Rate(batch, batch / (step_s + batch * token_s)) for batch in batches
            ),
            kv_tokens_per_s=(Rate(1, 1 / kv_token_s),),
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
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or set(fields) != set(names):
            given = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ConfigError(f"{path} has {given}, expected {sorted(names)}")
        try:
            return cls(
                tokens_per_s=_as_rates("tokens_per_s", fields["tokens_per_s"]),
                kv_tokens_per_s=_as_rates("kv_tokens_per_s", fields["kv_tokens_per_s"]),
                spanning_step_s=_as_seconds("spanning_step_s", fields["spanning_step_s"]),
                spanning_tile_s=_as_seconds("spanning_tile_s", fields["spanning_tile_s"]),
                copy_block_s=_as_seconds("copy_block_s", fields["copy_block_s"]),
            )
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
        """Predict everything but attention of an instance; smaller batches take no less time."""
        return self._batch.seconds(batch)

    def attention_s(self, context: int) -> float:
        """Predict one token's attention over `context` tokens of one instance."""
        return self._context.seconds(context)

    def communication_s(self, num_spanning: int) -> float:
        """Predict what `num_spanning` travelling queries add to a step."""
        if not num_spanning:
            return 0.0
        return self.profile.spanning_step_s + num_spanning * self.profile.spanning_tile_s


class _Table:
    """Seconds for a size: linear between the sizes measured, at the last one's rate beyond."""

    def __init__(self, rates: tuple[Rate, ...], *, floor: bool) -> None:
        self._sizes = [rate.size for rate in rates]
        self._seconds = [rate.size / rate.per_s for rate in rates]
        self._last_rate = rates[-1].per_s
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


def _as_rates(name: str, value: object) -> tuple[Rate, ...]:
    """Read [[size, rate], ...]."""
    if not isinstance(value, list):
        raise ConfigError(f"{name}={value!r} must be a list of [size, tokens per second]")
    rates = []
    for item in value:
        match item:
            case [int(size), int() | float() as per_s] if bool not in map(type, item):
                rates.append(Rate(size, float(per_s)))
            case _:
                raise ConfigError(f"{name} has {item!r}, expected [size, tokens per second]")
    return tuple(rates)


def _as_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} must be a number of at least 0")
    return float(value)


def _check_rates(name: str, rates: tuple[Rate, ...]) -> None:
    if not rates:
        raise ConfigError(f"{name} has no [size, tokens per second]")
    for size, per_s in rates:
        if size < 1 or not 0 < per_s < math.inf:
            raise ConfigError(f"{name} has {[size, per_s]}, expected numbers above 0")
    for lower, upper in itertools.pairwise(rates):
        if upper.size <= lower.size:
            raise ConfigError(f"{name} has size {upper.size} after {lower.size}, must increase")
        if upper.size / upper.per_s < lower.size / lower.per_s:
            raise ConfigError(f"{name} takes less time for {upper.size} than for {lower.size}")
