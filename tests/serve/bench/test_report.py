"""The text has the layout of `vllm bench serve`, the JSON its names."""

from typing import Any

import pytest

from distkv_jax.errors import ConfigError
from serve.bench.exchange import Outcome
from serve.bench.figures import work_out
from serve.bench.load import Lag, Measured
from serve.bench.report import file_name, json_of, text_of
from serve.bench.settings import BenchSettings, read_goodput, read_metadata

TEXT = """\
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         1         
Maximum request concurrency:             8         
Request rate configured (RPS):           4.00      
Benchmark duration (s):                  2.00      
Total input tokens:                      30        
Total generated tokens:                  6         
Request throughput (req/s):              1.00      
Request goodput (req/s):                 0.50      
Output token throughput (tok/s):         3.00      
Peak output token throughput (tok/s):    5.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          18.00     
---------------Time to First Token----------------
Mean TTFT (ms):                          600.00    
Median TTFT (ms):                        600.00    
P50 TTFT (ms):                           600.00    
P99.9 TTFT (ms):                         999.20    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          100.00    
Median TPOT (ms):                        100.00    
P50 TPOT (ms):                           100.00    
P99.9 TPOT (ms):                         100.00    
----------------------Client----------------------
Max send lag (ms):                       2.50      
Max event loop lag (ms):                 1.00      
Peak requests in flight:                 3         
=================================================="""

OUTCOMES = [
    Outcome(0.0, 10, 5, True, 0.2, (0.1, 0.3), 0.6, text="a b"),
    Outcome(0.5, 20, 1, True, 1.0, (), 1.0, queue_s=0.25),
    Outcome(0.6, 99, 0, False, error="HTTP 429: queue full"),
]
MEASURED = Measured(OUTCOMES, 2.0, Lag(0.0025, 0.001), 0, 3, False)
GIVEN: dict[str, Any] = {
    "max_concurrency": 8,
    "request_rate": 4.0,
    "percentile_metrics": "ttft,tpot",
    "metric_percentiles": "50,99.9",
}


def make_json(**given: Any) -> dict[str, Any]:
    settings = BenchSettings(**GIVEN, **given)
    figures = work_out(OUTCOMES, 2.0, percentiles=settings.percentiles)
    about = {"date": "d", "model_id": "m", "server_version": "1", "notes": []}
    return json_of(settings, MEASURED, figures, about=about, metadata={"commit": "abc"})


def test_text_is_laid_out_as_vllm_does() -> None:
    settings = BenchSettings(**GIVEN)
    figures = work_out(
        OUTCOMES, 2.0, percentiles=settings.percentiles, goodput_ms={"ttft": 500, "tpot": 100}
    )

    assert text_of(settings, MEASURED, figures) == TEXT


def test_json_has_vllms_names_and_ours() -> None:
    found = make_json()

    # Those of vLLM 0.32 for a text model, without --save-detailed.
    names = """date endpoint_type backend label model_id tokenizer_id num_prompts request_rate
        burstiness max_concurrency duration completed failed total_input_tokens
        total_output_tokens request_throughput request_goodput output_throughput
        total_token_throughput max_output_tokens_per_s max_concurrent_requests"""
    assert set(names.split()) <= set(found)
    assert found["p99.9_ttft_ms"] == pytest.approx(999.2)
    assert found["std_ttft_ms"] == pytest.approx(400)
    assert found["request_rate"] == 4.0
    assert found["commit"] == "abc"
    assert found["client_lag"] == {"max_send_ms": 2.5, "max_event_loop_ms": 1.0}
    assert found["error_counts"] == {"HTTP 429: queue full": 1}
    assert "errors" not in found


def test_details_are_a_list_for_each_request() -> None:
    found = make_json(save_detailed=True)

    assert found["input_lens"] == [10, 20, 99]
    assert found["output_lens"] == [5, 1, 0]
    assert found["ttfts"] == [0.2, 1.0, 0.0]
    assert found["itls"] == [(0.1, 0.3), (), ()]
    assert found["queue_times"] == [0.0, 0.25, 0.0]
    assert found["generated_texts"] == ["a b", "", ""]
    assert found["errors"] == ["", "", "HTTP 429: queue full"]


def test_rates_that_are_no_numbers_are_words_in_json() -> None:
    figures = work_out(OUTCOMES, 2.0)
    azure: dict[str, Any] = {"dataset_name": "azure", "dataset_path": "x"}
    cases: list[tuple[dict[str, Any], object]] = [
        ({}, "inf"),
        (azure, "trace"),
        (azure | {"request_rate": 2.0}, 2.0),
    ]
    for given, word in cases:
        found = json_of(BenchSettings(**given), MEASURED, figures, about={}, metadata={})
        assert found["request_rate"] == word


def test_files_are_named_as_vllm_does() -> None:
    assert file_name(BenchSettings(), "a/b", "D") == "openai-infqps-b-D.json"
    limited = BenchSettings(request_rate=2.5, max_concurrency=4, backend="grpc")
    assert file_name(limited, "b", "D") == "grpc-2.5qps-concurrency4-b-D.json"
    assert file_name(BenchSettings(result_filename="x.json"), "b", "D") == "x.json"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"num_prompts": 0}, "num_prompts=0 must be at least 1"),
        ({"random_prefix_len": -1}, "random_prefix_len=-1 must be at least 0"),
        ({"max_concurrency": 0}, "max_concurrency=0 must be at least 1"),
        ({"request_rate": 0.0}, "request_rate=0.0 must be above 0"),
        ({"request_rate": float("nan")}, "request_rate=nan must be above 0"),
        ({"random_range_ratio": 1.0}, r"random_range_ratio=1.0 must be in \[0, 1\)"),
        ({"dataset_name": "azure"}, "dataset azure needs --dataset-path"),
        ({"dataset_path": "x"}, "dataset random has no file"),
        ({"backend": "grpc", "endpoint": "/x"}, "endpoint=/x has no meaning with backend grpc"),
        ({"percentile_metrics": "ttft,foo"}, "percentile_metrics has 'foo', allowed: ttft, tpot"),
        ({"metric_percentiles": "101"}, "metric_percentiles='101' must be numbers within 0..100"),
        ({"metric_percentiles": "a"}, "metric_percentiles='a' must be numbers within 0..100"),
    ],
)
def test_settings_that_cannot_be_are_told(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        BenchSettings(**given)


def test_pairs_are_read_or_told() -> None:
    assert read_goodput(["ttft:500", "e2el:1.5"]) == {"ttft": 500.0, "e2el": 1.5}
    assert read_metadata(["commit = a=b"]) == {"commit": "a=b"}
    for word in ("itl:5", "ttft", "ttft:x", "ttft:-1"):
        with pytest.raises(ConfigError, match=f"goodput '{word}' must be NAME:MILLISECONDS"):
            read_goodput([word])
    for word in ("commit", "=x"):
        with pytest.raises(ConfigError, match=f"metadata '{word}' must be KEY=VALUE"):
            read_metadata([word])
