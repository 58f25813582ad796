"""Manifests are of fields that Kubernetes knows, and their parts fit each other."""

import contextlib
import copy
import dataclasses
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.main import main
from distkv_jax.cli.parser import build_parser
from distkv_jax.errors import ConfigError
from serve.launch import names, probe
from serve.launch.detect import detect
from serve.launch.names import wait_for_name
from serve.settings import ServerSettings, check_exposure
from serve.world.settings import WorldSettings
from tests.launch.kubernetes_fields import complaints

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
INFERENCE = "distkv.v1.Inference"
VERSIONS = {
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
    "Job": "batch/v1",
    "Service": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}
FULL = (
    *("--hosts", "4", "--image", "registry/distkv:1", "--name", "llm", "--namespace", "models"),
    *("--resource", "nvidia.com/gpu=8", "--resource", "cpu=32", "--node-selector", "gpu=h100"),
    *("--model-claim", "weights", "--env", "NCCL_DEBUG=INFO", "--folder", "/work"),
    *("/models/llama", "--mesh", "/models/mesh.toml", "--drain-grace-s", "90.5", "--port", "6000"),
)
KINDS = ("lws", "job")


def made(kind: str, *words: str) -> dict[str, Any]:
    """Objects by kind and name."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["launch", "--kubernetes", kind, *words]) == 0
    found = list(yaml.safe_load_all(output.getvalue()))
    return {f"{one['kind']} {one['metadata']['name']}": one for one in found}


def pods_of(objects: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates, that of rank 0 first."""
    if "Job llm" in objects:
        return [objects["Job llm"]["spec"]["template"]]
    group = objects["LeaderWorkerSet llm"]["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


@pytest.fixture(scope="module")
def both() -> dict[str, dict[str, Any]]:
    """What is printed for either kind; made once, copied before it is changed."""
    return {kind: made(kind, *FULL) for kind in KINDS}


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, both: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return both[request.param]


def test_every_field_is_one_that_kubernetes_knows(objects: dict[str, Any]) -> None:
    for one in objects.values():
        assert one["apiVersion"] == VERSIONS[one["kind"]]
        assert complaints(one, one["kind"], one["kind"]) == []


def test_a_wrong_field_type_or_gap_is_found(both: dict[str, dict[str, Any]]) -> None:
    job = copy.deepcopy(both["job"]["Job llm"])
    job["spec"]["completions"] = True
    job["spec"]["template"]["spec"]["volume"] = []
    del job["spec"]["template"]["spec"]["containers"][0]["name"]
    job["metadata"]["labels"]["a"] = 1

    assert complaints(job, "Job") == [
        ".metadata.labels[a] is no str",
        ".spec.completions is no int",
        ".spec.template.spec.containers[0] lacks name",
        ".spec.template.spec has no volume",
    ]


def test_every_pod_finds_its_place_in_one_world(
    objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LWS_GROUP_SIZE", "4")
    monkeypatch.setenv("LWS_LEADER_ADDRESS", "llm-0.llm.models")
    pods = pods_of(objects)
    commands = [pod["spec"]["containers"][0]["command"] for pod in pods]
    parsed = [build_parser().parse_args(command[1:]) for command in commands]

    for rank in range(4):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(rank))
        monkeypatch.setenv("LWS_WORKER_INDEX", str(rank))
        args = parsed[min(rank, len(pods) - 1)]
        given = given_fields(args, WorldSettings)
        world = WorldSettings(**(detect(given["launcher"]) | given))
        assert args.command == "serve"
        assert (args.model, args.mesh) == ("/models/llama", "/models/mesh.toml")
        assert (world.rank, world.num_hosts, world.port) == (rank, 4, 50061)
        assert world.host == (
            "llm-0.llm-hosts.models" if "Job llm" in objects else "llm-0.llm.models"
        )
        server = ServerSettings(**given_fields(args, ServerSettings))
        check_exposure(server, has_keys=True)
        assert server.host == "0.0.0.0"
        assert server.api_key_file == "/etc/distkv/keys/keys"
        assert server.drain_grace_s == 90.5
    assert {command[0] for command in commands} == {"distkv"}


def test_the_secret_of_a_pod_is_in_no_manifest(objects: dict[str, Any]) -> None:
    for pod in pods_of(objects):
        (container,) = pod["spec"]["containers"]
        secrets = {
            one["name"]: one["secret"]["secretName"]
            for one in pod["spec"]["volumes"]
            if "secret" in one
        }
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert secrets == {"join": "llm-join", "keys": "llm-keys"}
        assert mounts["join"] == "/etc/distkv/join"
        assert "/etc/distkv/join/token" in container["command"]
        assert mounts["models"] == "/models"
        assert {one["name"] for one in pod["spec"]["volumes"]} == set(mounts)
        assert container["env"] == [{"name": "NCCL_DEBUG", "value": "INFO"}]
    assert "Secret" not in {one["kind"] for one in objects.values()}


def test_pods_have_what_was_asked_for_and_time_to_drain(objects: dict[str, Any]) -> None:
    for pod in pods_of(objects):
        (container,) = pod["spec"]["containers"]
        asked = {"nvidia.com/gpu": "8", "cpu": "32"}
        assert container["resources"] == {"requests": asked, "limits": asked}
        assert container["image"] == "registry/distkv:1"
        assert container["workingDir"] == "/work"
        assert pod["spec"]["nodeSelector"] == {"gpu": "h100"}
        assert pod["spec"]["terminationGracePeriodSeconds"] > 90.5 + 15


def test_leader_worker_set_probes_its_leader_by_grpc() -> None:
    objects = made("lws", "--replicas", "3", *FULL)
    spec = objects["LeaderWorkerSet llm"]["spec"]
    leader, worker = (pod["spec"]["containers"][0] for pod in pods_of(objects))

    assert spec["replicas"] == 3
    assert spec["leaderWorkerTemplate"]["size"] == 4
    # A worker that is lost may come again; the rest of its group is not disturbed.
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "None"
    assert leader["livenessProbe"]["grpc"] == {"port": 6000, "service": ""}
    assert leader["startupProbe"]["grpc"] == {"port": 6000, "service": ""}
    assert leader["readinessProbe"]["grpc"] == {"port": 6000, "service": INFERENCE}
    # A worker has no server; it ends when its leader does.
    assert not [name for name in worker if name.endswith("Probe")]
    assert objects["Service llm-serve"]["spec"]["selector"] == {
        "app.kubernetes.io/name": "llm",
        "leaderworkerset.sigs.k8s.io/name": "llm",
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
    }


def test_job_has_names_for_its_pods_and_a_probe_that_knows_rank_0(
    both: dict[str, dict[str, Any]],
) -> None:
    objects = both["job"]
    spec, hosts = objects["Job llm"]["spec"], objects["Service llm-hosts"]["spec"]
    pod = spec["template"]
    (container,) = pod["spec"]["containers"]

    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert pod["spec"]["subdomain"] == "llm-hosts"
    assert pod["spec"]["restartPolicy"] == "OnFailure"
    assert hosts["clusterIP"] == "None"
    assert hosts["publishNotReadyAddresses"] is True
    assert hosts["selector"].items() <= pod["metadata"]["labels"].items()
    for name, service in {"livenessProbe": "", "readinessProbe": INFERENCE}.items():
        words = container[name]["exec"]["command"]
        assert words[:3] == ["python3", "-m", "serve.launch.probe"]
        assert words[3:] == ["--port", "6000", "--service", service]
    assert objects["Service llm-serve"]["spec"]["selector"] == {
        "app.kubernetes.io/name": "llm",
        "batch.kubernetes.io/job-completion-index": "0",
    }


def test_others_reach_only_the_ports_for_callers(objects: dict[str, Any]) -> None:
    policy = objects["NetworkPolicy llm"]["spec"]
    labels = {"matchLabels": {"app.kubernetes.io/name": "llm"}}

    assert policy["podSelector"] == labels
    assert policy["ingress"] == [
        {"ports": [{"port": 6000}, {"port": 8000}]},
        {"from": [{"podSelector": labels}]},
    ]
    container = pods_of(objects)[0]["spec"]["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"grpc": 6000, "http": 8000}
    for port in objects["Service llm-serve"]["spec"]["ports"]:
        assert port["targetPort"] == port["name"]
        assert ports[port["name"]] == port["port"]


def test_no_word_becomes_a_variable() -> None:
    objects = made("job", "--hosts", "2", "--image", "i", "--name", "llm", "/m/$(HOME)")

    assert "/m/$$(HOME)" in pods_of(objects)[0]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lws"], "kubernetes needs --image"),
        (["job", "--image", "i", "--replicas", "2"], "replicas=2 needs --kubernetes lws"),
        (["lws", "--image", "i", "--resource", "cpu"], "resource='cpu' must be NAME=VALUE"),
        (["lws", "--image", "i", "m", "--port", "0"], "port=0 and http_port=0 are not for"),
        (["lws", "--image", "i", "m", "--tls-cert", "c", "--tls-key", "k"], "tls_cert is not for"),
        (["lws", "--namespace", "A"], "namespace='A' must be 1 to 63 of"),
    ],
)
def test_what_cannot_be_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--hosts", "2", "--kubernetes", *words]) == 2

    assert told in capsys.readouterr().err


@dataclasses.dataclass
class Health:
    """A server of health alone."""

    port: int
    servicer: health.HealthServicer


@pytest.fixture
def served() -> Iterator[Health]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Health(port, servicer)
    server.stop(0).wait()


def test_probe_tells_whether_rank_0_serves(
    served: Health, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    words = ["--port", str(served.port), "--service"]

    assert probe.main([*words, ""]) == 0
    assert probe.main([*words, INFERENCE]) == 1
    served.servicer.set(INFERENCE, SERVING)
    assert probe.main([*words, INFERENCE]) == 0
    served.servicer.set(INFERENCE, NOT_SERVING)
    assert probe.main([*words, INFERENCE]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "server: SERVING",
        f"{INFERENCE}: NOT_FOUND ",
        f"{INFERENCE}: SERVING",
        f"{INFERENCE}: NOT_SERVING",
    ]


def test_probe_fails_where_nobody_listens_but_not_on_other_ranks() -> None:
    words = [sys.executable, "-m", "serve.launch.probe", "--port", "1"]

    for index, code in {"0": 1, "1": 0}.items():
        env = os.environ | {"JOB_COMPLETION_INDEX": index}
        ended = subprocess.run(words, env=env, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr


def test_rank_0_waits_for_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([socket.gaierror(-2, "unknown"), socket.gaierror(-2, "unknown"), None])
    asked = []

    def resolve(host: str, port: object) -> None:
        asked.append(host)
        answer = next(answers)
        if answer is not None:
            raise answer

    monkeypatch.setattr(names, "PAUSE_S", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    wait_for_name("llm-0.llm", 5)

    assert asked == ["llm-0.llm"] * 3
    answers = iter([socket.gaierror(-2, "unknown")])
    with pytest.raises(ConfigError, match="host 'llm-0.llm' had no address within 0.001 s: unkn"):
        wait_for_name("llm-0.llm", 0.001)
