"""`distkv meshes`: the meshes that `--mesh` knows by name."""

import argparse

from rich.console import Console
from rich.table import Table

from distkv_jax.mesh import load_mesh_config, mesh_names


def run(args: argparse.Namespace) -> int:
    """List them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("devices")
    for heading in ("instances", "tensor", "hosts", "memory of a device"):
        table.add_column(heading, justify="right")
    for mesh in map(load_mesh_config, mesh_names()):
        kind = mesh.device_kind or mesh.platform
        table.add_row(
            mesh.name,
            f"{mesh.num_devices} {'simulated ' if mesh.simulated else ''}{kind}",
            str(mesh.instance),
            str(mesh.tensor),
            str(mesh.hosts),
            "the machine's" if mesh.memory_gib is None else f"{mesh.memory_gib:g} GiB",
        )
    Console().print(table)
    return 0
