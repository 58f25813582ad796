"""What a hand-built model is: a checkpoint, and prompts whose right continuation is known."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from benchmarks.needle_models.weights import HEAD_DIM, HIDDEN_SIZE, RMS_NORM_EPS, Tensors


class NeedlePrompt(NamedTuple):
    """A prompt and the one token that is its right continuation."""

    token_ids: list[int]
    answer: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """A hand-built model with the prompts it answers.

    Attributes:
        name: What the command line calls it.
        max_context: Longest prompt, in tokens, that the margins of its scores allow.
        rope_theta: The base of its rotary frequencies.
        first_position: Smallest position of a needle.
        tail: Tokens from the needle's position to the end that a prompt needs at least.
        tensors: Makes the weights, under Hugging Face names.
        fill: Makes a prompt from (random generator, context, position), already checked.
    """

    name: str
    max_context: int
    rope_theta: float
    first_position: int
    tail: int
    tensors: Callable[[], Tensors]
    fill: Callable[[np.random.Generator, int, int], NeedlePrompt]

    def write(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float32) into the existing `folder`."""
        tensors = self.tensors()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tensors["lm_head.weight"].shape[0],
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": HIDDEN_SIZE,
            "num_hidden_layers": sum(name.endswith("q_proj.weight") for name in tensors),
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "rms_norm_eps": RMS_NORM_EPS,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_context,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": "float32",
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def position_at(self, context: int, depth: float) -> int:
        """Return the needle's position at `depth`, from 0 (earliest possible) to 1 (latest)."""
        return self.first_position + round(depth * (context - self.tail - self.first_position))

    def prompt(self, context: int, position: int, *, seed: int) -> NeedlePrompt:
        """Hide a needle at `position` of a random prompt of `context` tokens.

        Raises:
            ValueError: The context or the position is out of range.
        """
        if context > self.max_context:
            raise ValueError(
                f"context={context} tokens; {self.name} takes at most {self.max_context}"
            )
        if not self.first_position <= position <= context - self.tail:
            raise ValueError(
                f"position={position} in a context of {context} tokens; {self.name} takes "
                f"{self.first_position} to {context - self.tail}"
            )
        return self.fill(np.random.default_rng(seed), context, position)
