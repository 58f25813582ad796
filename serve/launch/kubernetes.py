"""Manifests for Kubernetes: a LeaderWorkerSet, or an Indexed Job with a headless Service."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from distkv_jax.errors import ConfigError
from serve.launch.detect import PORT
from serve.launch.settings import MODELS, KubernetesSettings, LaunchSettings
from serve.settings import ServerSettings

Kind = Literal["lws", "job"]
Manifest = dict[str, Any]

INFERENCE = "distkv.v1.Inference"
"""Health's name for taking requests."""
SECRETS = "/etc/distkv"
GOODBYE_S = 30
"""For a pod to end when its requests have."""
LWS_LABELS = "leaderworkerset.sigs.k8s.io"
JOB_INDEX = "batch.kubernetes.io/job-completion-index"
RESTARTS = 100
"""Of a Job's containers, before it has failed; a lost rank 0 restarts all of them."""

HEAD = """\
# {what} of {num_hosts} hosts.
# Before it is applied (nothing secret is in this file):
#   openssl rand -hex 32 | kubectl -n {namespace} create secret generic {name}-join \\
#     --from-file=token=/dev/stdin
#   kubectl -n {namespace} create secret generic {name}-keys --from-file=keys=keys.txt
# where keys.txt has a line NAME KEY, or NAME KEY admin, for each caller.
"""


def manifests_of(
    kind: Kind,
    serve_args: Sequence[str],
    num_hosts: int,
    settings: LaunchSettings,
    kubernetes: KubernetesSettings,
    server: ServerSettings,
) -> list[Manifest]:
    """Make all objects.

    Args:
        kind: Who runs the pods.
        serve_args: As after `distkv serve`.
        num_hosts: Pods of one service.
        settings: Where and how to start in the image.
        kubernetes: What the pods are.
        server: What `serve_args` say of the server.

    Raises:
        ConfigError: There is no image, or what was asked for cannot be.
    """
    if kubernetes.image is None:
        raise ConfigError("kubernetes needs --image")
    if server.has_tls:
        raise ConfigError(
            "tls_cert is not for --kubernetes: its gRPC probes speak no TLS; end TLS at an ingress"
        )
    if kind == "job" and kubernetes.replicas != 1:
        raise ConfigError(f"replicas={kubernetes.replicas} needs --kubernetes lws, a job has one")
    if server.port == 0 or server.http_port == 0:
        raise ConfigError("port=0 and http_port=0 are not for --kubernetes: probes need a number")
    maker = Maker(serve_args, num_hosts, settings, kubernetes, server)
    return maker.lws() if kind == "lws" else maker.job()


def text_of(kind: Kind, manifests: Sequence[Manifest], num_hosts: int) -> str:
    """Write objects as YAML, with a word on what they need."""
    metadata = manifests[0]["metadata"]
    head = HEAD.format(
        what="A LeaderWorkerSet" if kind == "lws" else "An Indexed Job",
        num_hosts=num_hosts,
        name=metadata["labels"]["app.kubernetes.io/name"],
        namespace=metadata["namespace"],
    )
    return head + yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=100)


class Maker:
    """Makes the objects of one service; every method returns new ones."""

    def __init__(
        self,
        serve_args: Sequence[str],
        num_hosts: int,
        settings: LaunchSettings,
        kubernetes: KubernetesSettings,
        server: ServerSettings,
    ) -> None:
        self._serve_args = serve_args
        self._num_hosts = num_hosts
        self._settings = settings
        self._kubernetes = kubernetes
        self._server = server

    def lws(self) -> list[Manifest]:
        """One group of pods for each replica, and a Service before their leaders."""
        probes = {
            "startupProbe": self._grpc_probe("", period_s=10, failures=180),
            "livenessProbe": self._grpc_probe("", period_s=10, failures=6),
            "readinessProbe": self._grpc_probe(INFERENCE, period_s=5, failures=1),
        }
        serving = {"ports": self._container_ports(), **probes}
        group = {
            "size": self._num_hosts,
            # What died is started again where it was: the others go on without it meanwhile, or end
            # by themselves, and are started again likewise.
            "restartPolicy": "None",
            "leaderTemplate": self._pod("lws", serving),
            "workerTemplate": self._pod("lws", {}),
        }
        workers = {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": self._metadata(),
            "spec": {"replicas": self._kubernetes.replicas, "leaderWorkerTemplate": group},
        }
        leaders = {f"{LWS_LABELS}/name": self._settings.name, f"{LWS_LABELS}/worker-index": "0"}
        return [workers, self._service(leaders), self._network_policy()]

    def job(self) -> list[Manifest]:
        """One Job, the Service by which its pods have names, and one before its rank 0."""
        probes = {
            "startupProbe": self._command_probe("", period_s=10, failures=180),
            "livenessProbe": self._command_probe("", period_s=20, failures=3),
            "readinessProbe": self._command_probe(INFERENCE, period_s=10, failures=1),
        }
        pod = self._pod("job", {"ports": self._container_ports(), **probes})
        # The Service's name is also the second part of every pod's.
        pod["spec"] |= {"subdomain": f"{self._settings.name}-hosts", "restartPolicy": "OnFailure"}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": self._metadata(),
            "spec": {
                "completionMode": "Indexed",
                "completions": self._num_hosts,
                "parallelism": self._num_hosts,
                "backoffLimit": RESTARTS,
                "template": pod,
            },
        }
        hosts = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self._metadata("-hosts"),
            "spec": {
                "clusterIP": "None",
                # Pods find each other before they are ready, which needs all of them.
                "publishNotReadyAddresses": True,
                "selector": self._labels(),
                "ports": [{"name": "join", "port": PORT}],
            },
        }
        return [job, hosts, self._service({JOB_INDEX: "0"}), self._network_policy()]

    def _labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self._settings.name}

    def _metadata(self, suffix: str = "") -> Manifest:
        return {
            "name": self._settings.name + suffix,
            "namespace": self._kubernetes.namespace,
            "labels": self._labels(),
        }

    def _ports(self) -> dict[str, int]:
        http = self._server.http_port
        return {"grpc": self._server.port} | ({} if http is None else {"http": http})

    def _container_ports(self) -> list[Manifest]:
        return [{"name": name, "containerPort": port} for name, port in self._ports().items()]

    def _service(self, selector: Mapping[str, str]) -> Manifest:
        """Lead clients to the ranks 0; LeaderWorkerSet makes one of the plain name itself."""
        ports = [
            {"name": name, "port": port, "targetPort": name} for name, port in self._ports().items()
        ]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self._metadata("-serve"),
            "spec": {"selector": self._labels() | dict(selector), "ports": ports},
        }

    def _network_policy(self) -> Manifest:
        """Let callers reach what callers need, and the pods each other: they speak in the clear."""
        ports = [{"port": port} for port in self._ports().values()]
        own = {"podSelector": {"matchLabels": self._labels()}}
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": self._metadata(),
            "spec": {
                "podSelector": {"matchLabels": self._labels()},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": ports}, {"from": [own]}],
            },
        }

    def _pod(self, kind: Kind, serving: Manifest) -> Manifest:
        resources = self._kubernetes.resources
        container: Manifest = {
            "name": "distkv",
            "image": self._kubernetes.image,
            "command": ["distkv", "serve", *map(literal, self._serve_args), *self._more_args(kind)],
        }
        if self._settings.folder is not None:
            container["workingDir"] = self._settings.folder
        if self._settings.variables:
            container["env"] = [
                {"name": name, "value": value} for name, value in self._settings.variables.items()
            ]
        if resources:
            # The same twice: devices must be so, and what was promised is kept.
            container["resources"] = {"requests": dict(resources), "limits": dict(resources)}
        container |= serving
        mounts = [{"name": "join", "mountPath": f"{SECRETS}/join", "readOnly": True}]
        mounts += [{"name": "keys", "mountPath": f"{SECRETS}/keys", "readOnly": True}]
        mounts += [{"name": "shm", "mountPath": "/dev/shm"}]
        # NCCL's memory shared by the devices of a host; 64 MiB is what containers have otherwise.
        volumes: list[Manifest] = [self._secret("join"), self._secret("keys")]
        volumes += [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        claim = self._kubernetes.model_claim
        if claim is not None:
            mounts += [{"name": "models", "mountPath": MODELS, "readOnly": True}]
            volumes += [
                {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            ]
        container["volumeMounts"] = mounts
        spec: Manifest = {
            "terminationGracePeriodSeconds": int(self._server.drain_grace_s) + GOODBYE_S,
            # It asks nothing of Kubernetes.
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": volumes,
        }
        if self._kubernetes.node_labels:
            spec["nodeSelector"] = self._kubernetes.node_labels
        return {"metadata": {"labels": self._labels()}, "spec": spec}

    def _secret(self, name: str) -> Manifest:
        return {"name": name, "secret": {"secretName": f"{self._settings.name}-{name}"}}

    def _more_args(self, kind: Kind) -> list[str]:
        # Keys yes, TLS no: NetworkPolicy and an ingress stand before it.
        words = ["--host", "0.0.0.0", "--insecure-public"]
        if self._server.api_key_file is None:
            words += ["--api-key-file", f"{SECRETS}/keys/keys"]
        words += ["--join-token-file", f"{SECRETS}/join/token", "--launcher", kind]
        if kind == "job":
            name = self._settings.name
            first = f"{name}-0.{name}-hosts.{self._kubernetes.namespace}:{PORT}"
            words += ["--coordinator", first, "--num-hosts", str(self._num_hosts)]
        return words

    def _grpc_probe(self, service: str, *, period_s: int, failures: int) -> Manifest:
        probe: Manifest = {"grpc": {"port": self._server.port, "service": service}}
        return probe | times(period_s, failures)

    def _command_probe(self, service: str, *, period_s: int, failures: int) -> Manifest:
        """Ask health as a gRPC probe would, of rank 0 alone: all pods of a Job have the same."""
        words = [self._settings.python, "-m", "serve.launch.probe"]
        words += ["--port", str(self._server.port), "--service", service]
        return {"exec": {"command": words}} | times(period_s, failures)


def literal(word: str) -> str:
    """Write a word so that Kubernetes puts no variable into it."""
    return word.replace("$(", "$$(")


def times(period_s: int, failures: int) -> Manifest:
    """Say how often a probe asks, and how often in a row it may be wrong."""
    return {"periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}
