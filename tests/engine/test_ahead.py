"""A step compiled from shapes alone needs what the same step of a running engine needs."""

from typing import NamedTuple

import numpy as np
import pytest
from jax.experimental import topologies

from distkv_jax.engine.ahead import buckets, compile_step, step_memory, topology_mesh
from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig, load_mesh_config
from tests.engine.builders import CONFIG, make_runner
from tests.models.builders import make_mesh

ENGINE = EngineConfig(
    block_size=4, num_blocks=16, max_num_seqs=4, max_num_batched_tokens=8, micro_attention="xla"
)
TPU = MeshConfig(name="slice", platform="tpu", instance=4, tensor=1, topology="v5e:2x2")


@pytest.mark.parametrize(("instance", "tensor"), [(1, 1), (2, 2)])
def test_shapes_alone_compile_to_the_step_that_runs(instance: int, tensor: int) -> None:
    mesh = make_mesh(instance, tensor)
    shape = buckets(ENGINE, mesh, 16)[-1]

    found = step_memory(
        compile_step(
            CONFIG.for_tensor(tensor), ENGINE, mesh, shape, dtype=np.float32, num_blocks=16
        )
    )

    runner = make_runner(instance, tensor)
    expected = runner.program(shape).memory_analysis()
    assert expected is not None
    assert found.arguments == expected.argument_size_in_bytes
    assert found.temporaries == expected.temp_size_in_bytes
    assert found.total >= found.arguments + found.temporaries


def test_buckets_are_the_largest_decode_step_and_the_largest_of_all() -> None:
    decode, largest = buckets(ENGINE, make_mesh(2, 1), 16)

    assert (decode.decode_rows, decode.prefill_tiles, decode.spanning) == (4, 0, True)
    assert (largest.decode_rows, largest.prefill_tiles, largest.spanning) == (4, 1, True)


def test_a_mesh_without_a_described_tpu_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="mesh cpu-8 cannot be compiled for ahead of time: platform is 'cpu' and topology "
        "None, expected 'tpu' and a topology",
    ):
        topology_mesh(load_mesh_config("cpu-8"))


def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_libtpu(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(topologies, "get_topology_desc", without_libtpu)

    with pytest.raises(
        ConfigError,
        match=r"topology 'v5e:2x2' is not available, is libtpu installed "
        r"\(pip install 'distkv-jax\[aot-tpu\]'\)\? Unable to initialize backend 'tpu'",
    ):
        topology_mesh(TPU)


def test_a_topology_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Described(NamedTuple):
        devices: list[object]

    monkeypatch.setattr(
        topologies, "get_topology_desc", lambda *args, **kwargs: Described([None] * 16)
    )

    with pytest.raises(ConfigError, match="topology 'v5e:2x2' has 16 devices, mesh slice needs 4"):
        topology_mesh(TPU)
