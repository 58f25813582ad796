"""A caller has no more under way than its quota, whatever others have; what ends is free again."""

from typing import Any

import grpc
import pytest

from distkv_jax.errors import QueueFull, QuotaExceeded
from serve.client import Client
from serve.keys import Caller
from serve.quota import Quota
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    paused,
    request_of,
    running,
    wait_submitted,
)

A, B = Caller("a", False), Caller("b", False)


def make_quota(**limits: Any) -> Quota:
    return Quota(**{"max_requests": 10, "caller_requests": None, "caller_tokens": None} | limits)


def test_requests_of_one_caller_do_not_use_up_anothers() -> None:
    quota = make_quota(caller_requests=2)
    quota.begin(A)
    quota.begin(A)
    with pytest.raises(QuotaExceeded, match="2 requests of yours under way, limit 2"):
        quota.begin(A)
    quota.begin(B)
    quota.end(A)
    quota.begin(A)

    assert quota.num_requests == 3


def test_all_callers_together_have_a_limit() -> None:
    quota = make_quota(max_requests=1)
    quota.begin(A)
    with pytest.raises(QueueFull, match="1 requests under way, limit 1"):
        quota.begin(B)


def test_waiting_tokens_have_a_limit_but_not_for_the_first_prompt() -> None:
    quota = make_quota(caller_tokens=100)
    quota.wait(A, 500)
    with pytest.raises(QuotaExceeded, match="1 prompt tokens behind 500 of yours waiting, limit 1"):
        quota.wait(A, 1)
    quota.wait(B, 60)
    quota.wait(B, 40)
    quota.stop_waiting(A, 500)
    quota.wait(A, 1)

    assert quota.num_waiting_tokens == 101


def test_over_a_socket_a_quota_is_told_with_a_time_to_come_back(
    loop: Loop, shared: Running, tmp_path: Any
) -> None:
    keys = [f"{name}-0123456789abcdef" for name in "ab"]
    file = tmp_path / "keys"
    file.write_text(f"a {keys[0]}\nb {keys[1]}\n")
    settings = {"api_key_file": str(file), "quota_requests": 2, "quota_tokens": 30}
    with running(loop, shared.llm, **settings) as service:
        headers = [(("authorization", f"Bearer {key}"),) for key in keys]
        generate = service.inference.Generate
        with paused(shared.llm):
            calls = [
                generate.future(request_of(*[5] * 20, max_tokens=1), metadata=headers[0])
                for _ in range(1)
            ]
            wait_submitted(service, 1)
            tokens = failure_of(generate, request_of(*[5] * 20), metadata=headers[0])
            calls.append(generate.future(request_of(5, max_tokens=1), metadata=headers[0]))
            calls.append(generate.future(request_of(5, max_tokens=1), metadata=headers[1]))
            wait_submitted(service, 3)
            requests = failure_of(generate, request_of(5), metadata=headers[0])
        for call in calls:
            assert call.result().outputs
        with Client(service.address, api_key=keys[0]) as client:
            assert client.generate([5] * 50, {"max_tokens": 1}).finished

    assert tokens.code is requests.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert tokens.text == "20 prompt tokens behind 20 of yours waiting, limit 30"
    assert requests.text == "2 requests of yours under way, limit 2"
    assert tokens.retry_s == requests.retry_s == 1.0
