"""Settings of a Hugging Face `config.json`, in the forms of transformers 4 and 5."""

from collections.abc import Mapping
from typing import TypeVar

from distkv_jax.errors import ConfigError

T = TypeVar("T")

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
# What transformers takes where a file says nothing.
MISTRAL_WINDOW = 4096
QWEN3_HEAD_DIM = 128


def architecture(settings: Mapping[str, object]) -> str:
    """Name the one architecture, if it is known."""
    names = settings.get("architectures")
    known = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or len(names) != 1:
        raise ConfigError(f"architectures={names!r} must be a list of one of {known}")
    if names[0] not in ARCHITECTURES:
        raise ConfigError(f"architecture {names[0]!r} is not known, known: {known}")
    return names[0]


def rope_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Join the rope settings of either form: `rope_parameters`, or two entries of their own."""
    new, old = settings.get("rope_parameters"), settings.get("rope_scaling")
    rope: dict[str, object] = {"rope_theta": settings.get("rope_theta")}
    for entry in (old, new):
        if isinstance(entry, Mapping):
            rope |= {str(name): value for name, value in entry.items()}
    nested = sorted(name for name, value in rope.items() if isinstance(value, Mapping))
    if nested:
        raise ConfigError(f"rope settings per layer type ({', '.join(nested)}) are not supported")
    partial = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"partial_rotary_factor={partial} is not supported, supported: 1")
    return rope


def sliding_window(settings: Mapping[str, object], family: str, num_layers: int) -> int | None:
    """Give the window that all layers share; None if none has one.

    Raises:
        ConfigError: Some layers have one and some have not.
    """
    if family == "Llama":
        return None
    default = MISTRAL_WINDOW if family == "Mistral" else None
    window = settings.get("sliding_window", default)
    if window is None or (family != "Mistral" and not flag(settings, "use_sliding_window")):
        return None
    if isinstance(window, bool) or not isinstance(window, int):
        raise ConfigError(f"sliding_window={window!r} must be an integer or null")
    kinds = settings.get("layer_types")
    if isinstance(kinds, list) and kinds:
        windowed = kinds.count("sliding_attention")
    elif family == "Mistral":
        windowed = num_layers
    else:
        windowed = num_layers - typed_value(settings, "max_window_layers", int, num_layers)
    if windowed <= 0:
        return None
    if windowed < num_layers:
        raise ConfigError(
            f"{windowed} of {num_layers} layers have sliding_window={window}, "
            "supported: all layers or none"
        )
    return window


def weight_dtype(settings: Mapping[str, object]) -> str:
    """Name the type the weights were saved in."""
    value = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    return str(value).removeprefix("torch.")


def token_ids(settings: Mapping[str, object], name: str) -> tuple[int, ...]:
    """Read an entry that may be one id, a list of them, or nothing."""
    value = settings.get(name)
    ids = []
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, bool) or not isinstance(item, int):
            raise ConfigError(f"{name}={value!r} must be an integer or a list of integers")
        ids.append(item)
    return tuple(ids)


def required_size(settings: Mapping[str, object], name: str) -> int:
    """Read an integer that must be there."""
    if settings.get(name) is None:
        raise ConfigError(f"{name} is missing in config.json")
    return typed_value(settings, name, int, 0)


def flag(settings: Mapping[str, object], name: str) -> bool:
    """Read a switch that is off where a file says nothing."""
    return typed_value(settings, name, bool, False)


def typed_value(settings: Mapping[str, object], name: str, kind: type[T], default: T) -> T:
    """Read an entry of one type; missing or null gives `default`."""
    value = settings.get(name)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} must be of type {kind.__name__}")
    return value


def kv_heads(settings: Mapping[str, object], family: str, q_heads: int) -> int:
    """Read the number of KV heads; old Llama files leave it out, meaning one per query head."""
    if family != "Llama" and "num_key_value_heads" not in settings:
        raise ConfigError("num_key_value_heads is missing in config.json")
    return typed_value(settings, "num_key_value_heads", int, q_heads)
