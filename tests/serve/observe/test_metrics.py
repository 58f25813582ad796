"""`/metrics` counts what happened, under names that people know, and asks the engine once."""

import threading
from pathlib import Path

import jax
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from distkv_jax.cache.usage import Usage
from serve.observe import metrics
from serve.observe.engine_metrics import engine_families, read_engine
from serve.observe.request_metrics import one_two_five
from serve.proto.distkv.v1 import control_pb2, inference_pb2
from tests.serve.observe.conftest import LATE_S, Records
from tests.serve.observe.scraping import get, parsed, scrape
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    in_background,
    paused,
    request_of,
    running,
    wait_until,
)

ALICE, SCRAPER = "alice-0123456789abcdef", "scraper-0123456789abcdef"
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
# As vLLM's, with our prefix: dashboards and people look for these.
KNOWN = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "num_preemptions": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
}


def test_names_are_those_that_people_know(web: Running) -> None:
    types = scrape(web).types
    assert {name: types.get(f"distkv_{name}") for name in KNOWN} == KNOWN


def test_requests_are_counted(web: Running, records: Records) -> None:
    before = scrape(web)
    web.inference.Generate(request_of(1, 2, 3, max_tokens=3, n=2, ignore_eos=True))
    list(web.inference.GenerateStream(request_of(4, 5, max_tokens=5, ignore_eos=True)))
    ended = records.wait(2)

    after = scrape(web)
    grown = after.since(before)
    assert grown["request_success_total{length}"] == 2
    assert not any(name.startswith("request_failures") for name in grown)
    assert grown["prompt_tokens_total"] == grown["request_prompt_tokens_sum"] == 5
    assert grown["generation_tokens_total"] == grown["request_generation_tokens_sum"] == 11
    assert grown["time_to_first_token_seconds_count"] == 2
    assert grown["inter_token_latency_seconds_count"] == 2 * 2 + 4
    assert grown["steps_total"] >= 3 and grown["host_seconds_total"] > 0
    sums = {
        "time_to_first_token": [one.first_token and one.first_token - one.arrival for one in ended],
        "e2e_request_latency": [one.end and one.end - one.arrival for one in ended],
        "request_queue_time": [one.scheduled and one.scheduled - one.arrival for one in ended],
        "inter_token_latency": records.gaps,
    }
    for name, values in sums.items():
        assert grown[f"{name}_seconds_sum"] == pytest.approx(sum(filter(None, values)), abs=1e-9)
    parts = [grown[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
    assert sum(parts) == pytest.approx(grown["e2e_request_latency_seconds_sum"])
    assert after.value("num_requests_under_way") == 0


def test_other_ends_are_counted_by_code(web: Running, records: Records) -> None:
    before = scrape(web)
    failure_of(web.inference.Generate, request_of(999_999))
    failure_of(web.inference.Generate, request_of(1, temperature=-1.0))
    status, _, _ = get(web, "/v1/completions", **{"content-type": "application/json"})
    assert status == 405  # no request at all
    with paused(web.llm):
        call = web.inference.GenerateStream(request_of(1, 2, 3, max_tokens=40))
        wait_until(lambda: web.server.dispatcher.quota.num_requests == 1, "it comes")
        call.cancel()
        records.wait(3)
        failure_of(web.inference.Generate, request_of(1, 2, max_tokens=5), timeout=LATE_S)
        records.wait(4)

    grown = scrape(web).since(before)
    failures = {name: count for name, count in grown.items() if name.startswith("request_")}
    assert failures == {
        "request_failures_total{INVALID_ARGUMENT}": 2,
        "request_failures_total{DEADLINE_EXCEEDED}": 1,
        "request_failures_total{CANCELLED}": 1,
    }


def test_blocks_add_up_while_a_request_is_on_two_instances(web: Running) -> None:
    def is_spread() -> bool:
        seen = scrape(web)
        for instance in ("0", "1"):
            states = ("free", "held", "reserved")
            total = sum(seen.value("blocks", kv_instance=instance, state=one) for one in states)
            assert total == 48
        lent = sum(seen.of("lent_blocks").values())
        assert lent == sum(seen.of("borrowed_blocks").values())
        assert lent == sum(seen.of("debt_blocks").values())
        for instance in ("0", "1"):
            debts = [
                count
                for labels, count in seen.of("debt_blocks").items()
                if ("debtor", instance) in labels
            ]
            assert seen.value("borrowed_blocks", kv_instance=instance) == sum(debts)
        held = sum(
            count for labels, count in seen.of("blocks").items() if ("state", "held") in labels
        )
        assert seen.value("remote_kv_fraction") == pytest.approx(lent / held if held else 0)
        return lent > 0 and seen.value("num_requests_running") == 1

    prompt = [3 + number % 100 for number in range(100)]
    message = request_of(*prompt, max_tokens=150, ignore_eos=True, request_id="spread")
    answer = in_background(web.inference.Generate, message)
    wait_until(is_spread, "blocks are lent")
    web.inference.Abort(inference_pb2.AbortRequest(request_id="spread"))
    wait_until(answer.done, "it ends")


def test_counters_only_grow_and_none_lags_behind_the_engine(web: Running) -> None:
    first = before = scrape(web)
    # The loop is not woken for tokens of an answer that nobody reads before its end.
    answer = in_background(web.inference.Generate, request_of(1, max_tokens=200, ignore_eos=True))
    while not answer.done():
        after = scrape(web)
        assert all(more > 0 for more in after.since(before).values())
        grown = after.since(first)
        gaps, tokens = grown["inter_token_latency_seconds_count"], grown["generation_tokens_total"]
        assert gaps >= tokens - 1
        before = after


def test_names_of_callers_and_requests_make_no_series(web: Running) -> None:
    web.inference.Generate(request_of(1, max_tokens=1))
    before = scrape(web)
    for number in range(12):
        web.inference.Generate(request_of(1, max_tokens=1, request_id=f"name-{number}"))
    failure_of(web.inference.Generate, request_of(999_999, request_id="wrong"))

    after = scrape(web)
    assert after.samples.keys() == before.samples.keys()
    assert not any("name-" in value for _, labels in after.samples for _, value in labels)
    assert len(after.samples) < 400


def test_an_engine_that_does_not_answer_is_told(
    web: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE_S", 0.05)
    before = scrape(web)
    with paused(web.llm):
        calls = []
        call_soon = web.llm.thread.call_soon
        monkeypatch.setattr(
            web.llm.thread, "call_soon", lambda read: (calls.append(read), call_soon(read))[1]
        )
        seen = [scrape(web), scrape(web)]
        # Nothing piles up before an engine that hangs.
        assert calls.count(metrics.read_engine) == 1
    assert [one.value("engine_up") for one in seen] == [0, 0]
    assert seen[0].of("steps_total") == {} and seen[0].of("blocks") == {}
    assert seen[0].of("request_success_total") == before.of("request_success_total")
    wait_until(lambda: scrape(web).value("engine_up") == 1, "the engine is back")


def test_host_memory_is_told_where_there_is_some(web: Running) -> None:
    assert not scrape(web).of("host_blocks")
    reading = web.llm.thread.call(read_engine)
    told = reading._replace(host_usage=(Usage(total=5, free=2, held=3, lent=0, borrowed=0),))

    (family,) = [one for one in engine_families(told) if one.name == "distkv_host_blocks"]
    assert [(sample.labels["state"], sample.value) for sample in family.samples] == [
        ("free", 2),
        ("held", 3),
    ]


def test_compilations_are_counted(web: Running) -> None:
    before = scrape(web).value("compilations_total")
    web.inference.Generate(request_of(1, 2, 3, max_tokens=2))
    assert scrape(web).value("compilations_total") == before

    jax.jit(lambda x: x * 3 + threading.get_ident() % 1000)(jax.numpy.ones(3))
    assert scrape(web).value("compilations_total") > before


def test_the_format_is_what_the_scraper_asks_for(web: Running) -> None:
    _, kind, text = get(web, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    _, kind, other = get(web, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    names = {f"distkv_{name}" for name in KNOWN}
    assert names <= {family.name for family in text_string_to_metric_families(other)}
    assert names <= parsed(text).types.keys()


def test_information_says_what_serves(web: Running) -> None:
    (labels,) = scrape(web).of("info")
    assert {("model", "small"), ("mesh", "instance=2,tensor=1"), ("block_size", "8")} <= labels


def test_a_scrape_needs_an_admins_key_and_whoever_is_not_let_in_is_counted(
    loop: Loop, web: Running, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"prometheus {SCRAPER} admin\nalice {ALICE}\n")
    with running(loop, web.llm, http_port=0, api_key_file=str(keys)) as closed:

        def failures() -> dict[str, float]:
            status, _, text = get(closed, "/metrics", authorization=f"Bearer {SCRAPER}")
            assert status == 200
            found = parsed(text).of("request_failures_total")
            return {code: found[frozenset({("code", code)})] for code in REFUSED}

        assert failures() == dict.fromkeys(REFUSED, 0)
        assert get(closed, "/metrics")[0] == 401
        assert get(closed, "/v1/models", authorization=f"Bearer {SCRAPER}x")[0] == 401
        assert get(closed, "/no/such/path")[0] == 401
        assert get(closed, "/metrics", authorization=f"Bearer {ALICE}")[0] == 403
        assert failures() == {"UNAUTHENTICATED": 3, "PERMISSION_DENIED": 1}
        failure_of(closed.inference.Generate, request_of(1))
        failure_of(
            closed.control.GetLoad,
            control_pb2.GetLoadRequest(),
            metadata=[("authorization", f"Bearer {ALICE}")],
        )
        assert failures() == {"UNAUTHENTICATED": 4, "PERMISSION_DENIED": 2}


def test_buckets_of_lengths_go_up_to_the_longest() -> None:
    assert list(one_two_five(120)) == [1, 2, 5, 10, 20, 50, 100]
