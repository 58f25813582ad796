"""Device meshes by name: which devices form which instance."""

import dataclasses
import functools
import importlib.resources
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distkv_jax.environment import add_xla_flags
from distkv_jax.errors import ConfigError

INSTANCE = "instance"
TENSOR = "tensor"
AXES = (INSTANCE, TENSOR)
PLATFORMS = ("cpu", "gpu", "tpu")

# What a mesh file may say beside its name and axes, and as what.
KEYS: dict[str, tuple[type, ...]] = {
    "platform": (str,),
    "simulated": (bool,),
    "device_kind": (str,),
    "hosts": (int,),
    "memory_gib": (int, float),
    "topology": (str,),
}

# A thread that waits for its turn on a shared core is not stuck: XLA's own limits, made for
# hardware devices, warn after seconds and then kill the process.
SIMULATION_FLAGS = {
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": "300",
    "xla_cpu_collective_call_terminate_timeout_seconds": "1800",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    """What a mesh file says.

    Attributes:
        name: What messages call this mesh.
        platform: "cpu", "gpu" or "tpu".
        instance: Instances, at least 1; each holds all weights and one pool of blocks.
        tensor: Devices an instance is split over, at least 1.
        simulated: Whether the devices are to be made: several CPU devices in one process.
        device_kind: A part of the name that JAX gives to the devices wanted; None takes any.
        hosts: Processes that share the mesh, one per host; must divide the devices.
        memory_gib: Memory of one device in GiB; None where the device can be asked.
        topology: The TPU slice in the compiler's words ("v5e:4x4"), to compile without it.
    """

    name: str
    platform: str
    instance: int
    tensor: int
    simulated: bool = False
    device_kind: str | None = None
    hosts: int = 1
    memory_gib: float | None = None
    topology: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no machine can be."""
        if self.platform not in PLATFORMS:
            raise ConfigError(
                f"{self.name} has platform={self.platform!r}, expected one of {list(PLATFORMS)}"
            )
        for field in (INSTANCE, TENSOR, "hosts"):
            count = getattr(self, field)
            if count < 1:
                raise ConfigError(f"{self.name} has {field}={count}, expected an integer >= 1")
        if self.num_devices % self.hosts:
            raise ConfigError(
                f"{self.name} has {self.num_devices} devices, which hosts={self.hosts} must divide"
            )
        if self.simulated and self.platform != "cpu":
            raise ConfigError(f"{self.name} has simulated=True, only for platform='cpu'")

    @property
    def num_devices(self) -> int:
        """Devices of the whole mesh, over all hosts."""
        return self.instance * self.tensor


def mesh_names() -> list[str]:
    """List the meshes that ship with the package, sorted."""
    return sorted(_shipped_files())


def load_mesh_config(mesh: str | Path) -> MeshConfig:
    """Find a mesh by name, by file, or from the devices that are there.

    Args:
        mesh: A name of `mesh_names()`, the path of a TOML file, or "auto": one instance per
            accelerator, or `cpu-1` without one (simulated devices are never faster than one).
            "auto" starts JAX's backend.

    Raises:
        ConfigError: No such name or file, or a file that says what a mesh cannot be.
    """
    if mesh == "auto":
        platform = jax.default_backend()
        if platform != "cpu":
            return MeshConfig(
                name="auto",
                platform=platform,
                instance=jax.device_count(),
                tensor=1,
                hosts=jax.process_count(),
            )
        mesh = "cpu-1"
    shipped = _shipped_files().get(str(mesh))
    if shipped is not None:
        return _parse(shipped.read_text(encoding="utf-8"), name=str(mesh), file=shipped.name)
    path = Path(mesh)
    if not path.is_file():
        names = ", ".join(["auto", *mesh_names()])
        raise ConfigError(f"unknown mesh {str(mesh)!r}: no such file, known names: {names}")
    return _parse(path.read_text(encoding="utf-8"), name=path.stem, file=path.name)


def make_mesh(config: MeshConfig) -> Mesh:
    """Build the device mesh, simulating devices where the config says so.

    Call it before anything else uses JAX: how many CPU devices there are is fixed when the
    backend starts. Devices past those needed stay unused.

    Returns:
        A mesh with axes ("instance", "tensor"), both Auto: under Explicit, the default of
        `jax.make_mesh`, a scatter into a sharded pool is refused until each call names its
        output sharding, and shardings here are decided once, by the arrays that are passed in.

    Raises:
        ConfigError: The devices that are there do not make this mesh.
    """
    simulate(config)
    try:
        devices = jax.devices(config.platform)
    except RuntimeError as error:
        raise ConfigError(
            f"mesh {config.name} needs {config.num_devices} {config.platform} devices, "
            f"JAX has {jax.device_count()} of platform {jax.default_backend()}"
        ) from error
    if len(devices) < config.num_devices:
        started = (
            ": JAX has already started, make the mesh before any other use of JAX, or set "
            f"JAX_NUM_CPU_DEVICES={config.num_devices // config.hosts}"
        )
        raise ConfigError(
            f"mesh {config.name} needs {config.num_devices} {config.platform} devices, "
            f"JAX has {len(devices)}{started if config.simulated else ''}"
        )
    if jax.process_count() != config.hosts:
        raise ConfigError(
            f"mesh {config.name} is for hosts={config.hosts}, JAX runs {jax.process_count()} "
            "processes (one per host)"
        )
    kind = devices[0].device_kind
    if config.device_kind is not None and config.device_kind not in kind:
        raise ConfigError(
            f"mesh {config.name} needs devices of kind {config.device_kind!r}, JAX has {kind!r}"
        )
    if config.hosts > 1 and len(devices) != config.num_devices:
        # The first n would leave whole hosts without a part of the mesh.
        raise ConfigError(
            f"mesh {config.name} needs all devices of its {config.hosts} hosts, "
            f"{config.num_devices}, JAX has {len(devices)}"
        )
    return jax.make_mesh(
        (config.instance, config.tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[: config.num_devices],
    )


@functools.cache
def sharding(mesh: Mesh, *axes: str | tuple[str, ...] | None) -> NamedSharding:
    """Give the one NamedSharding for `axes` on `mesh`: equal calls return the same object.

    Args:
        mesh: What `make_mesh` made.
        axes: For each array axis the mesh axes that split it; None, or left out: not split.
    """
    return NamedSharding(mesh, PartitionSpec(*axes))


def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """Bring a host array that every process has to the devices, each part to its own.

    Without a word between processes, where `jax.device_put` would compare what they have.
    """
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def spans_processes(mesh: Mesh) -> bool:
    """Say whether several processes have devices of a mesh."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def for_hosts(config: MeshConfig, hosts: int) -> MeshConfig:
    """Split a mesh over so many hosts; one that names its hosts is not split otherwise.

    Raises:
        ConfigError: It has another number of hosts, or devices that they do not divide.
    """
    if config.hosts not in (1, hosts):
        raise ConfigError(f"mesh {config.name} is for hosts={config.hosts}, there are {hosts}")
    return dataclasses.replace(config, hosts=hosts)


def on_hosts(config: MeshConfig, hosts: int) -> MeshConfig:
    """Give the part of a mesh that so many of its hosts hold; each holds whole instances."""
    per_host = config.instance // config.hosts
    return dataclasses.replace(config, instance=per_host * hosts, hosts=hosts)


def simulate(config: MeshConfig) -> None:
    """Ask for enough CPU devices, if they are simulated; before JAX makes any.

    None that the user asked for is taken away.
    """
    if not config.simulated:
        return
    add_xla_flags(SIMULATION_FLAGS)
    per_host = config.num_devices // config.hosts
    # JAX defines its options at import, out of a type checker's sight.
    asked = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if asked < per_host:
        try:
            jax.config.update("jax_num_cpu_devices", per_host)
        except RuntimeError:
            # The backend runs already: `make_mesh` counts what it has.
            return


def _shipped_files() -> dict[str, Traversable]:
    folder = importlib.resources.files("mesh_configs")
    return {
        file.name.removesuffix(".toml"): file
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }


def _parse(text: str, *, name: str, file: str) -> MeshConfig:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    axes = table.pop("axes", None)
    if not isinstance(axes, dict):
        raise ConfigError(f"{file} has no axes, expected {list(AXES)}")
    if set(axes) != set(AXES):
        raise ConfigError(f"{file} has axes {list(axes)}, expected {list(AXES)}")
    unknown = sorted(set(table) - set(KEYS))
    if unknown:
        raise ConfigError(f"{file} has unknown keys {unknown}, expected some of {sorted(KEYS)}")
    for key, value in (table | axes).items():
        kinds = KEYS.get(key, (int,))
        if type(value) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{file} has {key}={value!r}, expected {names}")
    if "memory_gib" in table:
        table["memory_gib"] = float(table["memory_gib"])
    if "platform" not in table:
        raise ConfigError(f"{file} has no platform, expected one of {list(PLATFORMS)}")
    return MeshConfig(name=name, **axes, **table)
