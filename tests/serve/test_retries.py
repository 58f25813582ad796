"""A client tries again only what the server did not begin, and not for ever."""

from typing import Any

import grpc
import pytest

from distkv_jax.errors import (
    ConfigError,
    DeadlineExceeded,
    DistKVError,
    QueueFull,
    RequestError,
    RequestLost,
    SlowReader,
    Unavailable,
)
from serve.client import Client, ClientSettings
from serve.client.retries import LONGEST_WAIT_S, Retries
from serve.errors import Heard, row_of
from tests.serve.running import Running


def heard(error: DistKVError) -> Heard:
    return Heard(error, row_of(error).code, row_of(error).retry_s)


@pytest.mark.parametrize("error", [Unavailable("away"), QueueFull("full")], ids=repr)
def test_waits_grow_and_are_random(error: DistKVError) -> None:
    waits = []
    for _ in range(20):
        retries = Retries(8, None)
        waits.append([retries.wait_before_next(heard(error), has_begun=False) for _ in range(8)])

    for number in range(8):
        same = [row[number] for row in waits]
        assert len(set(same)) > 10
        assert max(same) <= 2 * max(1.0, min(0.2 * 2**number, LONGEST_WAIT_S))
    assert all(row[7] > row[0] for row in waits)


def test_a_wait_is_no_shorter_than_the_server_asked() -> None:
    retries = Retries(1, None)

    assert retries.wait_before_next(heard(QueueFull("full")), has_begun=False) >= 1.0


def test_a_server_without_a_hint_is_asked_soon() -> None:
    gone = Heard(Unavailable("connection refused"), grpc.StatusCode.UNAVAILABLE, None)

    assert Retries(1, None).wait_before_next(gone, has_begun=False) < 0.4


@pytest.mark.parametrize(
    "error", [RequestError("wrong"), RequestLost("lost"), SlowReader("slow"), DistKVError("?")]
)
def test_what_will_not_succeed_is_raised_at_once(error: DistKVError) -> None:
    with pytest.raises(type(error)):
        Retries(9, None).wait_before_next(heard(error), has_begun=False)


def test_after_the_first_token_nothing_is_tried_again() -> None:
    with pytest.raises(Unavailable):
        Retries(9, None).wait_before_next(heard(Unavailable("away")), has_begun=True)


def test_tries_end() -> None:
    retries = Retries(2, None)
    for _ in range(2):
        retries.wait_before_next(heard(Unavailable("away")), has_begun=False)
    with pytest.raises(Unavailable):
        retries.wait_before_next(heard(Unavailable("away")), has_begun=False)


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    with pytest.raises(QueueFull):
        Retries(9, 0.5).wait_before_next(heard(QueueFull("full")), has_begun=False)
    with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
        Retries(9, -1).time_left()


def test_a_call_that_was_refused_once_succeeds(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, refusals = service.server.dispatcher.quota.begin, [Unavailable("a"), Unavailable("b")]

    def refuse_twice(caller: Any, **how: Any) -> None:
        if refusals:
            raise refusals.pop()
        begin(caller, **how)

    monkeypatch.setattr(service.server.dispatcher.quota, "begin", refuse_twice)
    monkeypatch.setattr("serve.client.blocking_client.time.sleep", lambda _: None)
    with Client(service.address) as client:
        *_, last = client.stream([5], {"max_tokens": 2, "ignore_eos": True})

    assert last.finished and not refusals


def test_nobody_there_is_unavailable() -> None:
    with Client("127.0.0.1:1", max_retries=1) as client, pytest.raises(Unavailable):
        client.model_info()


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="timeout_s=0.0 must be above 0 or None"):
        ClientSettings(timeout_s=0.0)
    with pytest.raises(ConfigError, match="max_retries=-1 must be at least 0"):
        ClientSettings(max_retries=-1)
    with pytest.raises(ConfigError, match="tls_cert and tls_key go together"):
        ClientSettings(tls_cert="c")


def test_settings_do_not_show_the_key() -> None:
    assert "secret" not in repr(ClientSettings(api_key="secret"))
