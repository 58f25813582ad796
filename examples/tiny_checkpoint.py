"""A trained decoder as a folder that Hugging Face tools can read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from flax import nnx
from jaxtyping import Array
from safetensors.flax import save
from tokenizers import Tokenizer

from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.weight_names import checkpoint_name, flat_params, is_transposed
from examples.tiny_tokenizer import BOS, EOS

# A model trained on stories has no roles: messages are told one after the other.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)


def save_checkpoint(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, config and tokenizer; each file replaces its old one whole.

    Args:
        model: A Llama decoder with tied embeddings; weights are rounded to `config.dtype`.
        tokenizer: The one it was trained with.
        folder: Created if absent; other files in it are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", save(hf_weights(model), metadata={"format": "pt"}))
    _replace_json(folder / "config.json", hf_config(model.config))
    _replace(folder / "tokenizer.json", tokenizer.to_str().encode())
    _replace_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": model.config.max_model_len,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _replace_json(
        folder / "generation_config.json",
        {
            "bos_token_id": model.config.bos_token_id,
            "eos_token_id": list(model.config.eos_token_ids),
            "do_sample": True,
            "temperature": 0.5,
            "top_p": 0.9,
        },
    )


def hf_weights(model: Decoder) -> dict[str, Array]:
    """Name the weights as Hugging Face does, with matrices as [out, in], in `config.dtype`."""
    weights: dict[str, Array] = {}
    for path, param in flat_params(nnx.state(model, nnx.Param)):
        weight = param[...].astype(model.config.dtype)
        weights[checkpoint_name(path)] = weight.T if is_transposed(path) else weight
    return weights


def hf_config(config: ModelConfig) -> dict[str, object]:
    """Describe a Llama decoder in the words of a `config.json`."""
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.q_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_model_len,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "torch_dtype": config.dtype,
    }


def _replace_json(path: Path, content: Mapping[str, object]) -> None:
    _replace(path, (json.dumps(content, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
