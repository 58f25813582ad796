"""An engine runs the best implementation of its platform, or the one asked for, never another."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distkv_jax.attention import AttentionCall, choose_implementation
from distkv_jax.attention.choose import best_of
from distkv_jax.errors import ConfigError
from pallas_kernels.kv_pool import KVPool
from pallas_kernels.micro_attention import IMPLEMENTATIONS, cpu


class Device(NamedTuple):
    """What is asked of a device."""

    platform: str
    device_kind: str
    compute_capability: str = ""


CPU = Device("cpu", "cpu")
TPU = Device("tpu", "TPU v5")
H100 = Device("gpu", "NVIDIA H100", "9.0")
A100 = Device("gpu", "NVIDIA A100", "8.0")


def call(
    q_dtype: Any = np.float32, kv_dtype: Any = np.float32, head_dim: int = 128
) -> AttentionCall:
    lists = jax.ShapeDtypeStruct((8,), np.int32)
    return AttentionCall(
        q=jax.ShapeDtypeStruct((1, 1, 4, head_dim), q_dtype),
        pool=KVPool(jax.ShapeDtypeStruct((4, 2, 2, 64, head_dim), kv_dtype)),  # pyright: ignore[reportArgumentType] (shapes alone)
        block_ids=lists,
        block_starts=lists,
        rows=jax.ShapeDtypeStruct((1, 5), np.int32),
    )


def choose(asked: str | None, device: Device, tmp_path: Path, **shapes: Any) -> str:
    return choose_implementation(
        asked, device=device, calls=[call(**shapes)], cache_folder=tmp_path
    )


@pytest.mark.parametrize(
    ("device", "best"),
    [(CPU, "cpu"), (TPU, "tpu"), (H100, "gpu"), (A100, "triton"), (Device("metal", "M4"), "xla")],
)
def test_every_platform_has_its_best(device: Device, best: str) -> None:
    assert best_of(device) == best
    assert best in IMPLEMENTATIONS


def test_nothing_asked_gives_the_best(tmp_path: Path) -> None:
    assert choose(None, CPU, tmp_path) == "cpu"
    assert choose(None, TPU, tmp_path, q_dtype=jnp.bfloat16, kv_dtype=jnp.bfloat16) == "tpu"


@pytest.mark.parametrize("device", [CPU, TPU, H100, A100], ids=lambda device: device.device_kind)
def test_xla_may_be_asked_for_anywhere(device: Device, tmp_path: Path) -> None:
    assert choose("xla", device, tmp_path) == "xla"


def test_another_platforms_implementation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="micro_attention='tpu' cannot run on a device of kind 'cpu', expected 'cpu' or 'xla'",
    ):
        choose("tpu", CPU, tmp_path)


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    known = ", ".join(sorted(IMPLEMENTATIONS))
    with pytest.raises(ConfigError, match=f"micro_attention='abacus' must be one of {known}"):
        choose("abacus", CPU, tmp_path)


def test_what_the_asked_one_cannot_take_is_refused_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="micro_attention='cpu' cannot run here: .*float16"):
        choose("cpu", CPU, tmp_path, q_dtype=np.float16, kv_dtype=np.float16)


def test_what_the_best_cannot_take_runs_in_xla_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose(None, CPU, tmp_path, q_dtype=np.float16, kv_dtype=np.float16) == "xla"

    [message] = caplog.messages
    assert message.startswith("attention runs in XLA, not in 'cpu': ")


def test_a_gpu_before_hopper_runs_xla_where_triton_is_not_installed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose(None, A100, tmp_path, q_dtype=jnp.bfloat16, kv_dtype=jnp.bfloat16) == "xla"

    [message] = caplog.messages
    assert message.startswith("attention runs in XLA, not in 'triton': ")
    with pytest.raises(ConfigError, match="micro_attention='triton' cannot run here: "):
        choose("triton", A100, tmp_path)


def test_without_a_native_kernel_xla_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "load", lambda folder: False)

    assert choose(None, CPU, tmp_path) == "xla"
    with pytest.raises(
        ConfigError,
        match="micro_attention='cpu' cannot run here: the native kernel could not be built",
    ):
        choose("cpu", CPU, tmp_path)
