"""A profile of this machine's steps is measured without a trace, or read from the file it names."""

from pathlib import Path

import jax
import numpy as np
import pytest

from distkv_jax.cache.performance import Profile, StepModel
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.shapes import ShapeTable, shape_table
from distkv_jax.engine.step_profile import attending, find_profile, measure_profile, rates
from distkv_jax.errors import ConfigError
from tests.engine.builders import make_runner

CONFIG = EngineConfig(block_size=4, num_blocks=16, max_num_seqs=4, max_num_batched_tokens=8)


def make_shapes(num_instances: int) -> ShapeTable:
    return shape_table(CONFIG, num_instances, 16)


def test_measuring_changes_no_pool_and_gives_a_model() -> None:
    runner = make_runner(2)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(runner._pools)]

    profile = measure_profile(runner, make_shapes(2))

    for leaf, expected in zip(jax.tree.leaves(runner._pools), before, strict=True):
        np.testing.assert_array_equal(leaf, expected)
    # Every bucket without collectives, and an eighth of a pool and all of it.
    assert [rate.size for rate in profile.tokens_per_s] == [4, 12]
    assert [rate.size for rate in profile.kv_tokens_per_s] == [8, 64]
    assert StepModel(profile).base_s(4) > 0
    assert profile.copy_block_s > 0


def test_the_measured_query_reads_as_many_blocks_as_it_says() -> None:
    runner = make_runner(2)
    shape = make_shapes(2).shapes[0]

    step = attending(runner, shape, 24)

    # Blocks that do not exist would be read as the last one: the lists must name real ones.
    ids, _ = runner.read(runner.dispatch(step))
    assert ids.shape == (2, shape.output_rows)
    with pytest.raises(ValueError, match="broadcast"):
        attending(runner, shape, 4 * (2 * 16 + 1))


def test_noise_does_not_make_more_tokens_cheaper() -> None:
    found = rates({64: 2e-3, 8: 3e-3, 16: -1.0})

    assert [rate.size for rate in found] == [8, 16, 64]
    assert [rate.size / rate.per_s for rate in found] == pytest.approx([3e-3, 3e-3, 3e-3])


def test_a_file_is_read_instead(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    Profile.linear(step_s=0.5).save(path)
    config = EngineConfig(step_profile=str(path))

    profile = find_profile(config, make_runner(1), make_shapes(1))

    assert profile == Profile.linear(step_s=0.5)


def test_a_file_that_is_not_there_is_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"

    profile = find_profile(EngineConfig(step_profile=str(path)), make_runner(2), make_shapes(2))

    assert profile == Profile.load(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "profile.json"

    with pytest.raises(ConfigError, match=r"step_profile='.*profile\.json': .*No such file"):
        find_profile(EngineConfig(step_profile=str(path)), make_runner(2), make_shapes(2))


@pytest.mark.parametrize(("config", "instances"), [(CONFIG, 1), (EngineConfig(pooling=False), 2)])
def test_where_nothing_may_move_nothing_is_measured(config: EngineConfig, instances: int) -> None:
    assert find_profile(config, make_runner(instances), make_shapes(instances)) is None


def test_without_warm_up_a_model_is_assumed() -> None:
    config = EngineConfig(warm_up=False)

    assert find_profile(config, make_runner(2), make_shapes(2)) == Profile.linear()
