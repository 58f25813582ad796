"""Rotary position frequencies: what a checkpoint's rope settings mean in numbers."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from distkv_jax.errors import ConfigError

KINDS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How a checkpoint stretches its rotary frequencies to a longer context.

    Attributes:
        kind: One of `KINDS`.
        factor: Ratio of the stretched to the original context length.
        original_max_len: Positions the unstretched model was trained on (llama3, yarn).
        low_freq_factor: llama3: turns within the original length below which all is stretched.
        high_freq_factor: llama3: turns within the original length above which nothing is.
        beta_fast: yarn: turns within the original length above which nothing is stretched.
        beta_slow: yarn: turns within the original length below which all is stretched.
        attention_factor: Factor on cosine and sine; 1 leaves scores as they are.
        truncate: yarn: round the ramp's ends outwards to whole dimensions.
    """

    kind: str
    factor: float
    original_max_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"rope scaling {self.kind!r} is not known, known: {_known()}")
        if self.factor < 1:
            raise ConfigError(f"rope scaling factor={self.factor} must be at least 1")
        if self.kind != "linear" and self.original_max_len < 1:
            raise ConfigError(
                f"rope scaling {self.kind!r} needs original_max_position_embeddings, "
                f"got {self.original_max_len}"
            )

    @classmethod
    def from_hf(cls, settings: Mapping[str, object], max_position: int) -> "RopeScaling | None":
        """Read the `rope_scaling` or `rope_parameters` entry of a `config.json`.

        Args:
            settings: The entry; old files say `type`, newer ones `rope_type`.
            max_position: The file's `max_position_embeddings`.

        Raises:
            ConfigError: The kind of scaling is not known, or a number is missing.
        """
        kind = str(settings.get("rope_type", settings.get("type", "default")))
        if kind == "default":
            return None
        if kind not in KINDS:
            raise ConfigError(f"rope scaling {kind!r} is not known, known: {_known()}")
        if "factor" not in settings:
            raise ConfigError(f"rope scaling {kind!r} needs a factor, got {sorted(settings)}")
        factor = _number(settings, "factor", 1.0)
        original = _number(settings, "original_max_position_embeddings", max_position)
        return cls(
            kind=kind,
            factor=factor,
            original_max_len=int(original),
            low_freq_factor=_number(settings, "low_freq_factor", 1.0),
            high_freq_factor=_number(settings, "high_freq_factor", 4.0),
            beta_fast=_number(settings, "beta_fast", 32.0),
            beta_slow=_number(settings, "beta_slow", 1.0),
            attention_factor=_attention_factor(settings, factor) if kind == "yarn" else 1.0,
            truncate=bool(settings.get("truncate", True)),
        )

    def max_len(self, max_position: int) -> int:
        """Give the stretched context length of a file that says `max_position`.

        Files say the unstretched length for linear and yarn, and the stretched one for llama3.
        """
        if self.kind == "llama3":
            return max_position
        original = self.original_max_len if self.kind == "yarn" else max_position
        return max(max_position, int(original * self.factor))


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> Float[np.ndarray, " half_dim"]:
    """Compute the angle per position of each rotated pair, as transformers rounds it.

    Source: transformers, modeling_rope_utils.py (`_compute_*_parameters`).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1) / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return (inverse / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling)
    return _yarn(inverse, head_dim, theta, scaling)


def _llama3(
    inverse: Float[np.ndarray, " half_dim"], scaling: RopeScaling
) -> Float[np.ndarray, " half_dim"]:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / inverse
    smooth = (scaling.original_max_len / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    stretched = np.where(
        wavelength > scaling.original_max_len / low, inverse / scaling.factor, inverse
    )
    is_medium = (wavelength >= scaling.original_max_len / high) & (
        wavelength <= scaling.original_max_len / low
    )
    return np.where(is_medium, blended, stretched).astype(np.float32)


def _yarn(
    inverse: Float[np.ndarray, " half_dim"], head_dim: int, theta: float, scaling: RopeScaling
) -> Float[np.ndarray, " half_dim"]:
    def dimension_of(turns: float) -> float:
        length = scaling.original_max_len / (turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high > low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / span, 0, 1)
    return (inverse / scaling.factor * ramp + inverse * (1 - ramp)).astype(np.float32)


def _attention_factor(settings: Mapping[str, object], factor: float) -> float:
    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if settings.get("attention_factor") is not None:
        return _number(settings, "attention_factor", 1.0)
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        all_dim = _number(settings, "mscale_all_dim", 1.0)
        return mscale(_number(settings, "mscale", 1.0)) / mscale(all_dim)
    return mscale(1.0)


def _number(settings: Mapping[str, object], name: str, default: int | float) -> float:
    value = settings.get(name)
    if value is None:
        return float(default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"rope scaling {name}={value!r} must be a number")
    return float(value)


def _known() -> str:
    return ", ".join(("default", *KINDS))
