"""A mesh file becomes the mesh it names, or is refused with what it lacks."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig, load_mesh_config, make_mesh, mesh_names, sharding

FOLDER = Path(__file__).parents[1] / "mesh_configs"
FIRST_LINE = r"# (Last run: .+, \d{4}-\d{2}-\d{2}|Compiled only, never run|Never run)(: .+)?\.\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "bad.toml"
    file.write_text(text)
    return file


def run_python(code: str, **environment: str) -> str:
    """Run `code` in a Python of its own, where JAX has not started."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(FOLDER.parent), "JAX_PLATFORMS": "cpu", **environment},
        timeout=120,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", mesh_names())
def test_every_shipped_file_loads_and_says_where_it_ran(name: str):
    config = load_mesh_config(name)

    assert config.name == name
    assert re.match(FIRST_LINE, (FOLDER / f"{name}.toml").read_text())


def test_every_file_of_the_folder_has_a_name():
    assert mesh_names() == sorted(file.stem for file in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", ["cpu-1", "cpu-2", "cpu-8", "cpu-2x2", "cpu-1x4"])
def test_cpu_meshes_have_their_shape_and_auto_axes(name: str):
    config = load_mesh_config(name)
    mesh = make_mesh(config)

    assert dict(mesh.shape) == {"instance": config.instance, "tensor": config.tensor}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert list(mesh.devices.flat) == jax.devices("cpu")[: config.num_devices]


def test_auto_is_one_instance_on_a_cpu():
    assert load_mesh_config("auto") == load_mesh_config("cpu-1")


def test_a_file_is_taken_by_path(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text('platform = "cpu"\nhosts = 2\naxes = { instance = 2, tensor = 3 }\n')

    assert load_mesh_config(str(file)) == load_mesh_config(file)
    assert load_mesh_config(file) == MeshConfig(
        name="mine", platform="cpu", instance=2, tensor=3, hosts=2
    )


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown mesh 'cpu-9'.*known names: auto, .*cpu-8, h100"):
        load_mesh_config("cpu-9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'platform = "cpu"\naxes = { instance = 1, tenser = 1 }',
            "bad.toml has axes ['instance', 'tenser'], expected ['instance', 'tensor']",
        ),
        ('platform = "cpu"', "bad.toml has no axes, expected ['instance', 'tensor']"),
        ("axes = { instance = 1, tensor = 1 }", "bad.toml has no platform, expected one of"),
        (
            'platform = "cpu"\nhost = 1\naxes = { instance = 1, tensor = 1 }',
            "bad.toml has unknown keys ['host'], expected some of ['device_kind', 'hosts',",
        ),
        (
            'platform = "cpu"\nsimulated = "yes"\naxes = { instance = 1, tensor = 1 }',
            "bad.toml has simulated='yes', expected bool",
        ),
        (
            'platform = "npu"\naxes = { instance = 1, tensor = 1 }',
            "bad has platform='npu', expected one of ['cpu', 'gpu', 'tpu']",
        ),
        (
            'platform = "cpu"\naxes = { instance = 0, tensor = 1 }',
            "bad has instance=0, expected an integer >= 1",
        ),
        (
            'platform = "cpu"\naxes = { instance = 1, tensor = 1.5 }',
            "bad.toml has tensor=1.5, expected int",
        ),
        (
            'platform = "cpu"\nhosts = 2\naxes = { instance = 3, tensor = 1 }',
            "bad has 3 devices, which hosts=2 must divide",
        ),
        (
            'platform = "tpu"\nsimulated = true\naxes = { instance = 1, tensor = 1 }',
            "bad has simulated=True, only for platform='cpu'",
        ),
        ("axes = {", "bad.toml is not TOML: "),
    ],
)
def test_a_wrong_file_is_refused_with_given_and_allowed(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_mesh_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(name="m", platform="cpu", instance=16, tensor=1, simulated=True),
            "mesh m needs 16 cpu devices, JAX has 8: JAX has already started, make the mesh "
            "before any other use of JAX, or set JAX_NUM_CPU_DEVICES=16",
        ),
        (
            MeshConfig(name="m", platform="cpu", instance=9, tensor=1),
            "mesh m needs 9 cpu devices, JAX has 8",
        ),
        (
            MeshConfig(name="m", platform="tpu", instance=4, tensor=4),
            "mesh m needs 16 tpu devices, JAX has",
        ),
        (
            MeshConfig(name="m", platform="cpu", instance=8, tensor=1, hosts=2),
            "mesh m is for hosts=2, JAX runs 1 processes (one per host)",
        ),
        (
            MeshConfig(name="m", platform="cpu", instance=1, tensor=1, device_kind="H100"),
            "mesh m needs devices of kind 'H100', JAX has 'cpu'",
        ),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_refused(config: MeshConfig, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_mesh(config)


def test_simulated_devices_are_made_where_jax_has_not_started():
    code = (
        "import os, jax; from distkv_jax.mesh import load_mesh_config, make_mesh;"
        "mesh = make_mesh(load_mesh_config('cpu-2x2'));"
        "print(dict(mesh.shape), jax.device_count(), os.environ['XLA_FLAGS'])"
    )
    output = run_python(code, XLA_FLAGS="--xla_cpu_collective_call_warn_stuck_timeout_seconds=77")

    assert "{'instance': 2, 'tensor': 2} 4 --xla" in output
    assert "warn_stuck_timeout_seconds=77 --xla_cpu_collective_call_terminate" in output


def test_devices_the_user_asked_for_stay():
    code = (
        "import jax; from distkv_jax.mesh import load_mesh_config, make_mesh;"
        "print(make_mesh(load_mesh_config('cpu-2')).size, jax.device_count())"
    )

    assert run_python(code, JAX_NUM_CPU_DEVICES="5") == "2 5\n"


def test_a_scatter_into_a_sharded_array_needs_no_output_sharding():
    """The reason for Auto axes; `jax.make_mesh` alone would refuse this."""
    mesh = make_mesh(load_mesh_config("cpu-2x2"))
    pool = jax.device_put(jnp.zeros((4, 2)), sharding(mesh, "instance", "tensor"))

    written = jax.jit(lambda pool, slots: pool.at[slots].set(1.0))(pool, jnp.array([0, 3]))

    assert written.sum() == 4


def test_equal_shardings_are_one_object():
    mesh = make_mesh(load_mesh_config("cpu-2x2"))

    assert sharding(mesh, "instance", None) is sharding(mesh, "instance", None)
    assert sharding(mesh, "instance").spec == PartitionSpec("instance")
