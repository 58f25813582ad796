"""`distkv launch`: a service of several processes, here or on several machines."""

import argparse
import math

from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.parser import build_parser
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import for_hosts, load_mesh_config, mesh_names
from serve.launch import cloud_tpu, kubernetes, local, slurm, ssh
from serve.launch.settings import (
    CloudTpuSettings,
    KubernetesSettings,
    LaunchSettings,
    RestartSettings,
    SlurmSettings,
)
from serve.settings import ServerSettings
from serve.world.settings import WorldSettings

# The settings of each way to launch; those of other ways are refused.
WAYS: dict[str, tuple[type, ...]] = {
    "local": (RestartSettings,),
    "ssh": (LaunchSettings, RestartSettings),
    "slurm": (LaunchSettings, SlurmSettings),
    "kubernetes": (LaunchSettings, KubernetesSettings),
    "cloud_tpu": (LaunchSettings, CloudTpuSettings),
}


def run(args: argparse.Namespace) -> int:
    """Start the processes, or print their commands, or a script or manifests that start them.

    Returns:
        0 if all ended in order and nothing was lost.

    Raises:
        ConfigError: The number of hosts or a setting cannot be.
        OSError: The file of hosts cannot be read.
        SystemExit: A setting of `distkv serve` is wrong (2).
    """
    words = args.serve[1:] if args.serve[:1] == ["--"] else args.serve
    way = way_of(args)
    hosts = [] if args.ssh is None else ssh.read_hosts(args.ssh)
    num_hosts = len(hosts) or args.hosts
    if num_hosts is None:
        raise ConfigError("launch needs --hosts, or --ssh with their names")
    if hosts and args.hosts not in (None, num_hosts):
        raise ConfigError(f"hosts={args.hosts} but ssh={args.ssh!r} names {num_hosts}")
    if num_hosts < 2:
        raise ConfigError(f"hosts={num_hosts} must be at least 2; for one there is `distkv serve`")
    # So that what is wrong is said once, and not by every process.
    serve_args = build_parser().parse_args(["serve", *words])
    if "mesh" in serve_args and serve_args.mesh in mesh_names():
        for_hosts(load_mesh_config(serve_args.mesh), num_hosts)
    server = ServerSettings(**given_fields(serve_args, ServerSettings))
    grace_s = local.grace_of(server.drain_grace_s)
    max_restarts = RestartSettings(**given_fields(args, RestartSettings)).max_restarts
    if way == "local":
        if args.dry_run:
            local.print_commands(words, num_hosts)
            return 0
        return local.launch(words, num_hosts, grace_s=grace_s, max_restarts=max_restarts)
    settings = LaunchSettings(**given_fields(args, LaunchSettings))
    if way == "ssh":
        commands = ssh.commands_of(
            words,
            hosts,
            settings,
            coordinator=given_fields(serve_args, WorldSettings).get("coordinator"),
            grace_s=grace_s,
        )
        if args.dry_run:
            ssh.print_commands(commands)
            return 0
        return ssh.launch(commands, hosts, grace_s=grace_s, max_restarts=max_restarts)
    print(text_of(args, way, words, num_hosts, settings, server), end="")
    return 0


def way_of(args: argparse.Namespace) -> str:
    """Say how to launch.

    Raises:
        ConfigError: A setting of another way was given.
    """
    given = vars(args)
    way = next((way for way in WAYS if given.get(way)), "local")
    for kind in {kind for kinds in WAYS.values() for kind in kinds} - set(WAYS[way]):
        for field in given_fields(args, kind):
            flags = [flag_of(other) for other, kinds in WAYS.items() if kind in kinds]
            raise ConfigError(f"{flag_of(field)} is for {' or '.join(flags)}, which was not given")
    return way


def flag_of(name: str) -> str:
    """Write a name as it is given."""
    if name == "local":
        return "--hosts alone"
    return f"--{name.replace('_', '-')}"


def text_of(
    args: argparse.Namespace,
    way: str,
    words: list[str],
    num_hosts: int,
    settings: LaunchSettings,
    server: ServerSettings,
) -> str:
    """Write the script or the manifests of a way that only prints."""
    if way == "slurm":
        asked = SlurmSettings(**given_fields(args, SlurmSettings))
        notice_s = math.ceil(local.grace_of(server.drain_grace_s))
        return slurm.script_of(words, num_hosts, settings, asked, notice_s=notice_s)
    if way == "cloud_tpu":
        place = CloudTpuSettings(**given_fields(args, CloudTpuSettings))
        return cloud_tpu.script_of(words, num_hosts, args.cloud_tpu, settings, place)
    pods = KubernetesSettings(**given_fields(args, KubernetesSettings))
    made = kubernetes.manifests_of(args.kubernetes, words, num_hosts, settings, pods, server)
    return kubernetes.text_of(args.kubernetes, made, num_hosts)
