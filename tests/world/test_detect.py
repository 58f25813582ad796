"""A launcher's words about a process become its place in the world."""

import pytest

from distkv_jax.errors import ConfigError
from serve.launch.detect import detect, first_host


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("a1,b2", "a1"),
        ("gpu[03-12]", "gpu03"),
        ("gpu[3,5-7],x", "gpu3"),
        ("tpu-a-[1-2],b", "tpu-a-1"),
        ("leader.svc.cluster.local", "leader.svc.cluster.local"),
    ],
)
def test_the_first_host_of_a_list_leads(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_slurm_and_leader_worker_set_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "n[01-08]",
        "LWS_WORKER_INDEX": "0",
        "LWS_GROUP_SIZE": "2",
        "LWS_LEADER_ADDRESS": "llm-0.llm",
    }.items():
        monkeypatch.setenv(name, value)

    assert detect("slurm") == {"coordinator": "n01:50061", "num_hosts": 8, "host_rank": 3}
    assert detect("lws") == {"coordinator": "llm-0.llm:50061", "num_hosts": 2, "host_rank": 0}


def test_what_the_launcher_did_not_say_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n1")

    with pytest.raises(ConfigError, match="needs SLURM_PROCID, SLURM_STEP_NUM_TASKS in the env"):
        detect("slurm")
