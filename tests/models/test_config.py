"""A config.json is read as transformers reads it, or refused with what is known."""

import dataclasses
import json
from pathlib import Path

import pytest

from distkv_jax.errors import ConfigError
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.rope import RopeScaling

GOLDEN = Path(__file__).parent / "golden"


def settings(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    }
    return base | changes


def test_old_and_new_form_of_rope_settings_agree():
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    old = settings(
        rope_theta=5e5, rope_scaling={"type": "llama3", **scaling}, torch_dtype="float16"
    )
    new = settings(
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling}, dtype="float16"
    )

    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(old).rope_theta == 5e5
    assert ModelConfig.from_hf(old).rope_scaling == RopeScaling(
        kind="llama3", factor=8.0, original_max_len=32
    )


def test_head_dim_comes_from_the_file_when_it_has_one():
    assert ModelConfig.from_hf(settings()).head_dim == 4
    assert ModelConfig.from_hf(settings(head_dim=16)).head_dim == 16
    assert ModelConfig.from_hf(settings(head_dim=None)).head_dim == 4
    assert ModelConfig.from_hf(settings(architectures=["Qwen3ForCausalLM"])).head_dim == 128


def test_each_family_has_its_biases_and_norms():
    def flags(name: str, **changes: object) -> tuple[bool, bool, bool, bool]:
        config = ModelConfig.from_hf(settings(architectures=[f"{name}ForCausalLM"], **changes))
        return config.attention_bias, config.o_bias, config.mlp_bias, config.qk_norm

    assert flags("Llama") == (False, False, False, False)
    assert flags("Llama", attention_bias=True, mlp_bias=True) == (True, True, True, False)
    assert flags("Mistral", attention_bias=True) == (False, False, False, False)
    assert flags("Qwen2") == (True, False, False, False)
    assert flags("Qwen3", attention_bias=True) == (True, True, False, True)


def test_end_tokens_of_both_files_count():
    generation = {"eos_token_id": [2, 7]}

    assert ModelConfig.from_hf(settings(eos_token_id=5), generation).eos_token_ids == (5, 2, 7)
    assert ModelConfig.from_hf(settings(eos_token_id=None)).eos_token_ids == ()


def test_stretched_length_is_told_for_linear_and_yarn():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    llama3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64}

    assert ModelConfig.from_hf(settings(rope_scaling=yarn)).max_model_len == 1024
    assert ModelConfig.from_hf(settings(rope_scaling=llama3)).max_model_len == 256


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 16}, 16),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, None),
        ({"architectures": ["MistralForCausalLM"]}, 4096),
        ({"sliding_window": 16}, None),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}, None),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 16,
                "use_sliding_window": True,
                "max_window_layers": 0,
            },
            16,
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 16,
                "use_sliding_window": True,
                "max_window_layers": 4,
            },
            None,
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 4,
            },
            16,
        ),
    ],
)
def test_window_is_that_of_all_layers(changes: dict[str, object], window: int | None):
    assert ModelConfig.from_hf(settings(**changes)).sliding_window == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture 'GPT2LMHeadModel' is not known, known: LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        ),
        ({"architectures": None}, "architectures=None must be a list of one of Llama"),
        ({"hidden_size": None}, "hidden_size is missing in config.json"),
        ({"hidden_size": "wide"}, "hidden_size='wide' must be of type int"),
        ({"num_key_value_heads": 3}, "q_heads=8 must be a multiple of kv_heads=3"),
        ({"num_key_value_heads": 0}, "kv_heads=0 must be at least 1"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not known, known: silu"),
        ({"torch_dtype": "float8"}, "dtype='float8' is not known, known: float32, bf"),
        ({"quantization_config": {"bits": 4}}, "quantized checkpoints .* are not supported"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope scaling 'longrope' is not known, known: default, linear, llama3, yarn",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope scaling 'linear' needs a factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5 must be at least 1"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            r"rope settings per layer type \(full_attention\) are not supported",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"eos_token_id": "end"}, "eos_token_id='end' must be an integer or a list"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 16,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            "3 of 4 layers have sliding_window=16, supported: all layers or none",
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            "2 of 4 layers have sliding_window=16, supported: all layers or none",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(settings(**changes))


def test_only_llama_may_leave_out_kv_heads():
    bare = settings()
    del bare["num_key_value_heads"]

    assert ModelConfig.from_hf(bare).kv_heads == 8
    with pytest.raises(ConfigError, match="num_key_value_heads is missing"):
        ModelConfig.from_hf(bare | {"architectures": ["Qwen2ForCausalLM"]})


def test_heads_are_split_or_replicated_over_tensor():
    config = ModelConfig.from_hf(settings())

    assert config.for_tensor(1) == config
    assert config.for_tensor(2) == config
    assert config.for_tensor(8) == dataclasses.replace(config, kv_heads=8, kv_replicas=4)


@pytest.mark.parametrize(
    ("tensor", "heads", "message"),
    [
        (3, (8, 2), "q_heads=8 must be a multiple of tensor=3"),
        (0, (8, 2), "q_heads=8 must be a multiple of tensor=0"),
        (4, (12, 6), "kv_heads=6 must be a multiple or a divisor of tensor=4"),
    ],
)
def test_heads_that_do_not_divide_are_refused(tensor: int, heads: tuple[int, int], message: str):
    config = ModelConfig.from_hf(
        settings(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=4)
    )

    with pytest.raises(ConfigError, match=message):
        config.for_tensor(tensor)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/config.json")), ids=lambda p: p.parent.name)
def test_every_golden_config_is_read(path: Path):
    config = ModelConfig.from_hf(json.loads(path.read_text()))

    assert (config.num_layers, config.q_heads, config.hidden_size) == (2, 4, 32)
