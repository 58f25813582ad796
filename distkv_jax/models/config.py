"""What a decoder is made of, read from a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Mapping

from distkv_jax.errors import ConfigError
from distkv_jax.models import hf_settings
from distkv_jax.models.hf_settings import ARCHITECTURES, QWEN3_HEAD_DIM
from distkv_jax.models.rope import RopeScaling

DTYPES = ("float32", "bfloat16", "float16")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "q_heads",
    "kv_heads",
    "head_dim",
    "max_model_len",
    "kv_replicas",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes and switches of a decoder; the same for every layer.

    Attributes:
        architecture: One of `ARCHITECTURES`.
        vocab_size: Rows of the embedding; token ids are below it.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Decoder layers.
        q_heads: Query heads; a multiple of `kv_heads`.
        kv_heads: Key and value heads as stored in the pool, replicas included.
        head_dim: Width of one head; even.
        max_model_len: Positions the checkpoint was made for.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are stretched, or None.
        rms_norm_eps: Added to the mean square in every norm.
        tie_embeddings: The output projection is the embedding.
        attention_bias: q, k and v projections have a bias.
        o_bias: The attention's output projection has a bias.
        mlp_bias: The MLP's projections have a bias.
        qk_norm: Queries and keys are normalised per head before they are rotated.
        sliding_window: Latest positions a query sees, itself included; None for all.
        bos_token_id: First token of a text, if the model has one.
        eos_token_ids: Tokens that end a text.
        kv_replicas: Copies of each of the checkpoint's key and value heads.
        dtype: Type of the checkpoint's weights, one of `DTYPES`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    max_model_len: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    attention_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    kv_replicas: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"architecture {self.architecture!r} is not known, "
                f"known: {', '.join(ARCHITECTURES)}"
            )
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is not known, known: {', '.join(DTYPES)}")
        if self.q_heads % self.kv_heads:
            raise ConfigError(
                f"q_heads={self.q_heads} must be a multiple of kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window={self.sliding_window} must be at least 1 or None")
        if self.rope_theta <= 1:
            raise ConfigError(f"rope_theta={self.rope_theta} must be above 1")

    @classmethod
    def from_hf(
        cls, settings: Mapping[str, object], generation: Mapping[str, object] | None = None
    ) -> "ModelConfig":
        """Read a `config.json`, in the form of transformers 4 or 5.

        Args:
            settings: The file's content.
            generation: Content of `generation_config.json`; its end tokens are added.

        Raises:
            ConfigError: The architecture or a setting is not known, or a size is missing.
        """
        architecture = hf_settings.architecture(settings)
        family = architecture.removesuffix("ForCausalLM")
        if settings.get("quantization_config") is not None:
            raise ConfigError("quantized checkpoints (quantization_config) are not supported")
        activation = settings.get("hidden_act", "silu")
        if activation != "silu":
            raise ConfigError(f"hidden_act={activation!r} is not known, known: silu")
        q_heads = hf_settings.required_size(settings, "num_attention_heads")
        hidden_size = hf_settings.required_size(settings, "hidden_size")
        max_position = hf_settings.required_size(settings, "max_position_embeddings")
        num_layers = hf_settings.required_size(settings, "num_hidden_layers")
        rope = hf_settings.rope_settings(settings)
        scaling = RopeScaling.from_hf(rope, max_position)
        has_switch = family in ("Llama", "Qwen3")
        attention_bias = has_switch and hf_settings.flag(settings, "attention_bias")
        head_dim = QWEN3_HEAD_DIM if family == "Qwen3" else hidden_size // q_heads
        eos = (
            *hf_settings.token_ids(settings, "eos_token_id"),
            *hf_settings.token_ids(generation or {}, "eos_token_id"),
        )
        return cls(
            architecture=architecture,
            vocab_size=hf_settings.required_size(settings, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=hf_settings.required_size(settings, "intermediate_size"),
            num_layers=num_layers,
            q_heads=q_heads,
            kv_heads=hf_settings.kv_heads(settings, family, q_heads),
            head_dim=hf_settings.typed_value(settings, "head_dim", int, head_dim),
            max_model_len=max_position if scaling is None else scaling.max_len(max_position),
            rope_theta=hf_settings.typed_value(rope, "rope_theta", float, 10000.0),
            rope_scaling=scaling,
            rms_norm_eps=hf_settings.typed_value(settings, "rms_norm_eps", float, 1e-6),
            tie_embeddings=hf_settings.flag(settings, "tie_word_embeddings"),
            attention_bias=attention_bias or family == "Qwen2",
            o_bias=attention_bias,
            mlp_bias=hf_settings.flag(settings, "mlp_bias") and family == "Llama",
            qk_norm=family == "Qwen3",
            sliding_window=hf_settings.sliding_window(settings, family, num_layers),
            bos_token_id=next(iter(hf_settings.token_ids(settings, "bos_token_id")), None),
            eos_token_ids=tuple(dict.fromkeys(eos)),
            dtype=hf_settings.weight_dtype(settings),
        )

    def for_tensor(self, tensor: int) -> "ModelConfig":
        """Return the config as split over `tensor` devices.

        Each device gets whole heads. With fewer KV heads than devices every KV head is
        kept `kv_replicas` times, so that a query head finds its own on its device.

        Args:
            tensor: Size of the mesh axis `tensor`.

        Raises:
            ConfigError: Heads do not divide.
        """
        if tensor < 1 or self.q_heads % tensor:
            raise ConfigError(f"q_heads={self.q_heads} must be a multiple of tensor={tensor}")
        if self.kv_heads % tensor == 0:
            return self
        if tensor % self.kv_heads:
            raise ConfigError(
                f"kv_heads={self.kv_heads} must be a multiple or a divisor of tensor={tensor}"
            )
        replicas = tensor // self.kv_heads
        return dataclasses.replace(self, kv_heads=tensor, kv_replicas=self.kv_replicas * replicas)
