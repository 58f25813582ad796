"""What `fit` says is what can be counted by hand from config.json."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distkv_jax.cli.capacity import fit
from distkv_jax.cli.fit import read_model
from distkv_jax.cli.main import main
from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig, load_mesh_config
from distkv_jax.models.config import ModelConfig
from distkv_jax.models.model_folder import find_model

# 2 layers, 4 query heads and 2 KV heads of 8: as small as it can be and still be counted by hand.
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    q_heads=4,
    kv_heads=2,
    head_dim=8,
    max_model_len=1000,
    dtype="bfloat16",
)
EMBEDDINGS = 2 * 100 * 32
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
NORMS = 5 * 32
KV = 2 * 2 * 2 * 8
"""K and V of a token: layers, K and V, KV heads, head_dim."""


def mesh(**settings: Any) -> MeshConfig:
    given: dict[str, Any] = dict(name="m", platform="gpu", instance=4, tensor=1, memory_gib=1.0)
    return MeshConfig(**{**given, **settings})


def test_weights_and_kv_are_those_counted_by_hand():
    found = fit(MODEL, mesh(), EngineConfig(num_blocks=3, block_size=16))

    assert found.weight_bytes == 2 * (EMBEDDINGS + 2 * LAYER + NORMS)
    assert found.token_bytes == 2 * KV
    assert (found.instance_tokens, found.mesh_tokens) == (48, 192)


def test_tensor_splits_weights_and_heads_but_not_norms():
    found = fit(MODEL, mesh(tensor=2), EngineConfig(num_blocks=3, block_size=16))

    assert found.weight_bytes == EMBEDDINGS + 2 * LAYER + 2 * NORMS
    assert found.token_bytes == KV


def test_repeated_heads_are_counted():
    found = fit(MODEL, mesh(tensor=4), EngineConfig(num_blocks=3))

    assert found.token_bytes == KV


def test_dtype_auto_is_float32_on_cpu_and_the_checkpoints_elsewhere():
    config = EngineConfig(num_blocks=3)

    assert fit(MODEL, load_mesh_config("cpu-2"), config).token_bytes == 4 * KV
    assert fit(MODEL, mesh(), config).token_bytes == 2 * KV
    assert fit(MODEL, mesh(), config, dtype="float32").token_bytes == 4 * KV


def test_pool_is_what_device_memory_leaves():
    config = EngineConfig(block_size=64, device_memory_fraction=0.5, max_num_seqs=8)
    one = fit(MODEL, mesh(memory_gib=1.0), config)
    two = fit(MODEL, mesh(), config, device_memory_gib=2.0)

    block = 64 * 2 * KV
    assert two.num_blocks - one.num_blocks in (2**29 // block, 2**29 // block + 1)
    # Weights and sampler state are small here, and not nothing.
    assert 0 < 2**29 - one.num_blocks * block < 100_000


def test_a_request_may_be_as_long_as_all_pools_and_the_model_allow():
    short = fit(MODEL, mesh(), EngineConfig(num_blocks=3, block_size=16))
    long = fit(MODEL, mesh(), EngineConfig(num_blocks=60, block_size=16))
    cut = fit(MODEL, mesh(), EngineConfig(num_blocks=60, block_size=16, max_model_len=500))

    assert (short.longest(short.instance_tokens), short.longest(short.mesh_tokens)) == (48, 192)
    assert (long.longest(long.instance_tokens), long.longest(long.mesh_tokens)) == (960, 1000)
    assert cut.longest(cut.mesh_tokens) == 500


def test_pooling_leaves_no_part_of_a_pool_unused():
    found = fit(MODEL, mesh(), EngineConfig(num_blocks=5, block_size=16))

    # 33 tokens need 3 blocks: one request in each pool of 5, six in all 20.
    assert (found.num_apart(33), found.num_pooled(33)) == (4, 6)
    # 96 tokens need 6 blocks: no pool alone has as many.
    assert (found.num_apart(96), found.num_pooled(96)) == (0, 3)


def test_a_window_bounds_what_a_request_holds():
    windowed = dataclasses.replace(
        MODEL, architecture="MistralForCausalLM", sliding_window=40, max_model_len=900
    )
    found = fit(windowed, mesh(), EngineConfig(num_blocks=5, block_size=16))

    assert found.blocks_of(900) == 4
    assert found.blocks_of(40) == 3
    assert found.longest(found.instance_tokens) == 900


def test_memory_that_nobody_knows_is_asked_for():
    with pytest.raises(ConfigError, match="mesh m has no memory_gib: give --device-memory-gib"):
        fit(MODEL, mesh(memory_gib=None), EngineConfig())


def test_a_model_larger_than_a_device_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="no KV block of .* bytes fits: device memory 10,737 "):
        fit(MODEL, mesh(), EngineConfig(), device_memory_gib=1e-5)


def test_fit_prints_one_instance_apart_and_pooled(capsys: pytest.CaptureFixture[str]):
    code = main("fit tiny --mesh cpu-8 --block-size 16 --num-blocks 20 --context 400".split())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert code == 0
    # The tiny model: 4 layers, 4 KV heads of 32, float32 on CPU.
    assert "KV of a token on each 4,096 bytes" in lines
    assert "one instance 8 apart 8 pooled" in lines
    assert "KV cache, tokens 320 2,560 2,560" in lines
    assert "longest context, tokens 320 320 2,560" in lines
    assert "requests of 400 tokens 0 0 6" in lines


def test_fit_reads_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "any-name.json"
    path.write_text((find_model("tiny") / "config.json").read_text())

    assert main(["fit", str(path), "--mesh", "cpu-2"]) == 0
    assert "4 layers, 4 KV heads of 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "token_kib", "weights_billion"),
    [("llama2-7b", 512, 6.74), ("llama2-13b", 800, 13.02), ("llama2-70b", 320, 68.98)],
)
def test_known_shapes_are_the_papers_models(
    name: str, token_kib: int, weights_billion: float
) -> None:
    found = fit(read_model(name), mesh(), EngineConfig(num_blocks=1))

    assert found.token_bytes == token_kib * 1024
    assert found.weight_bytes / 2 / 1e9 == pytest.approx(weights_billion, abs=0.01)


def test_quantised_keys_and_values_take_half_the_memory_and_a_scale() -> None:
    found = fit(MODEL, mesh(), EngineConfig(num_blocks=1, kv_cache_dtype="int8"))

    # 2 layers, K and V, 2 heads: 8 numbers of one byte and a scale of four.
    assert found.token_bytes == 2 * 2 * 2 * (8 + 4)


def test_temporaries_take_their_part_of_the_memory() -> None:
    without = fit(MODEL, mesh(), EngineConfig())
    block = without.token_bytes * without.block_size

    found = fit(MODEL, mesh(), EngineConfig(), temporaries=3 * block)

    assert found.num_blocks == without.num_blocks - 3
