"""Write the golden checkpoints and what transformers computes from them.

Run it only to change a case: `pip install '.[parity]' && python tests/models/make_golden.py`
(made with torch 2.13.0 and transformers 5.23.0, float32, eager attention, on CPU).

For each case there are, in `tests/models/golden`:

* `CASE/`: a random checkpoint as `save_pretrained` writes it, without a tokenizer;
* `CASE.npz`: for prompt i of `num_prompts`, `prompt_i` [tokens] int32, `logits_i`
  [tokens vocab] float32 (row t scores the token after t), `greedy_i` [64] int32: the tokens
  that follow greedily, end tokens ignored, and `gap_i` [64] float32: by how much each one's
  logit is above the second best, so a test can tell a tie from a mistake.

Prompt i of a case has `PROMPT_LENGTHS[i]` tokens.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

GOLDEN = Path(__file__).parent / "golden"
PROMPT_LENGTHS = (1, 17, 70)
NUM_GREEDY = 64

SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=128,
    max_position_embeddings=256,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN_ROPE = dict(
    rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=64
)
LINEAR_ROPE = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)

CASES = {
    "llama_mha": ("llama", dict(num_key_value_heads=4), torch.float32),
    "llama3_gqa_tied": (
        "llama",
        # With this width one pair is blended, others are stretched or left alone.
        dict(
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=LLAMA3_ROPE,
        ),
        torch.float32,
    ),
    "llama_mqa_bias": (
        "llama",
        dict(
            num_key_value_heads=1,
            vocab_size=130,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=LINEAR_ROPE,
        ),
        torch.float32,
    ),
    "mistral_window": ("mistral", dict(num_key_value_heads=2, sliding_window=16), torch.float32),
    "qwen2_bias": ("qwen2", dict(num_key_value_heads=2), torch.float32),
    "qwen2_yarn": ("qwen2", dict(num_key_value_heads=2, rope_parameters=YARN_ROPE), torch.float32),
    "qwen3_norm": ("qwen3", dict(num_key_value_heads=2, head_dim=12), torch.float32),
    "llama_bf16_sharded": ("llama", dict(num_key_value_heads=2), torch.bfloat16),
}

# Other seeds than the case's number, so that no greedy token is a near tie (gap < 1e-3).
SEEDS = {"llama3_gqa_tied": 22, "mistral_window": 11, "llama_bf16_sharded": 12}


def make_model(family: str, settings: dict, seed: int) -> torch.nn.Module:
    """Make a random model whose biases and norms are random too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SMALL, **settings})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float()
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.25)
    return model


@torch.no_grad()
def golden(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Compute logits and greedy tokens without a cache."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {"num_prompts": np.int32(len(PROMPT_LENGTHS))}
    for number, length in enumerate(PROMPT_LENGTHS):
        prompt = torch.randint(3, model.config.vocab_size, (1, length), generator=generator)
        arrays[f"prompt_{number}"] = prompt[0].numpy().astype(np.int32)
        arrays[f"logits_{number}"] = model(prompt).logits[0].float().numpy()
        tokens, greedy, gaps = prompt, [], []
        for _ in range(NUM_GREEDY):
            best = model(tokens).logits[0, -1].float().topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            greedy.append(int(best.indices[0]))
            tokens = torch.cat([tokens, best.indices[:1][None]], dim=1)
        arrays[f"greedy_{number}"] = np.asarray(greedy, np.int32)
        arrays[f"gap_{number}"] = np.asarray(gaps, np.float32)
    return arrays


def write_checkpoint(name: str, seed: int, folder: Path) -> torch.nn.Module:
    """Write a random checkpoint of a case, and give transformers' model of what was written."""
    family, settings, dtype = CASES[name]
    sharded = {"max_shard_size": "24KB"} if name.endswith("sharded") else {}
    make_model(family, settings, seed).to(dtype).save_pretrained(folder, **sharded)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.train(False)


def main(names: list[str]) -> None:
    """Write the named cases, or all."""
    for number, name in enumerate(CASES):
        if names and name not in names:
            continue
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        seed = SEEDS.get(name, number)
        arrays = golden(write_checkpoint(name, seed, folder), seed)
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)
        gap = min(arrays[f"gap_{number}"].min() for number in range(len(PROMPT_LENGTHS)))
        print(f"{name}: smallest gap {gap:.5f}, {sorted(file.name for file in folder.iterdir())}")


if __name__ == "__main__":
    main(sys.argv[1:])
