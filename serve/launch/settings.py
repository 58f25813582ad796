"""What the launchers of several machines are told, beside what is served."""

import dataclasses
import re
from collections.abc import Sequence

from distkv_jax.errors import ConfigError

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""A name that Kubernetes, DNS and Slurm take, with room for what they add to it."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Read `NAME=VALUE` texts.

    Raises:
        ConfigError: One has no name or no value.
    """
    found = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if not name or not value:
            raise ConfigError(f"{option}={text!r} must be NAME=VALUE")
        found[name] = value
    return found


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSettings:
    """What all launchers but the one of this machine share.

    Attributes:
        name: Name of the job, or of Kubernetes' objects.
        folder: Folder to start in on every host, such as a checkout; None stays in the one there.
        python: Python to run there, such as .venv/bin/python; on Kubernetes the image's.
        env: Variable to set for every process, as NCCL_SOCKET_IFNAME=eth1; may be given several
            times. Not for secrets: command lines and manifests are read by others.
    """

    name: str = "distkv"
    folder: str | None = None
    python: str = "python3"
    env: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.name):
            raise ConfigError(
                f"name={self.name!r} must be 1 to 40 of a-z, 0-9 and -, the first one a letter"
            )
        for name in self.variables:
            if not VARIABLE.fullmatch(name):
                raise ConfigError(f"env has {name!r}, which no variable can be called")
            if name.endswith(("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")):
                raise ConfigError(f"env has {name}: others would read it, use a file of that host")

    @property
    def variables(self) -> dict[str, str]:
        """`env`, taken apart."""
        return pairs("env", self.env)

    @property
    def prefix(self) -> list[str]:
        """Words that set `env` for the command after them."""
        return ["env", *self.env] if self.env else []


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RestartSettings:
    """How long a launcher that stays keeps a service up.

    Attributes:
        max_restarts: New starts in a row of a rank, or of the whole service after rank 0 was lost,
            before it is given up; what lived for a minute counts anew. 0 leaves restarts to others.
    """

    max_restarts: int = 10

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts={self.max_restarts} must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SlurmSettings:
    """What a Slurm job asks for.

    Attributes:
        gpus_per_node: How many GPUs of every node; None asks for none.
        cpus_per_node: How many CPU cores of every node; None leaves it to Slurm.
        partition: Partition of the cluster; None takes its default.
        account: Account that pays; None takes the user's own.
        time_limit: Time the job may take, as Slurm writes it: 30, 12:00:00, 7-0.
    """

    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "cpus_per_node"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        for name in ("partition", "account", "time_limit"):
            value = getattr(self, name)
            # It becomes a line of a script's head, which no shell reads and none can quote.
            if value is not None and not re.fullmatch(r"[\w.,:+-]+", value):
                raise ConfigError(
                    f"{name}={value!r} must be letters, digits and any of _ . , : + -"
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesSettings:
    """What the pods of a service are.

    Attributes:
        image: Container image with distkv-jax in it.
        namespace: Namespace of all objects.
        replicas: Services of so many hosts each, side by side; with lws only.
        resource: Part of a node for every pod, as nvidia.com/gpu=8, google.com/tpu=4, cpu=16 or
            memory=64Gi; may be given several times.
        node_selector: Label of the nodes to run on, as gpu=h100; may be given several times.
        model_claim: Name of a PersistentVolumeClaim that holds models, which are read-only at
            `MODELS`.
    """

    image: str | None = None
    namespace: str = "default"
    replicas: int = 1
    resource: Sequence[str] | None = None
    node_selector: Sequence[str] | None = None
    model_claim: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 1000:
            raise ConfigError(f"replicas={self.replicas} must be within 1..1000")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", self.namespace):
            raise ConfigError(f"namespace={self.namespace!r} must be 1 to 63 of a-z, 0-9 and -")
        _ = self.resources, self.node_labels

    @property
    def resources(self) -> dict[str, str]:
        """`resource`, taken apart."""
        return pairs("resource", self.resource)

    @property
    def node_labels(self) -> dict[str, str]:
        """`node_selector`, taken apart."""
        return pairs("node_selector", self.node_selector)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CloudTpuSettings:
    """Where a slice of Cloud TPU is.

    Attributes:
        zone: Zone of the slice; None takes the one that gcloud is set to.
        project: Project of the slice; None takes the one that gcloud is set to.
    """

    zone: str | None = None
    project: str | None = None


MODELS = "/models"
"""Where pods see the models of a claim."""
