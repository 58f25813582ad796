"""The benchmark of host memory times both ways for every context."""

import json

from benchmarks.host_memory import run
from tests.llm.engines import GOLDEN


def test_both_ways_are_timed() -> None:
    settings = {"mesh": "cpu-1", "dtype": "float32", "block_size": 8, "max_num_batched_tokens": 32}

    found = run([5, 70], runs=2, model=str(GOLDEN / "llama3_gqa_tied"), **settings)

    for records, context in zip(found, [5, 70], strict=True):
        assert list(records) == ["host_memory/save_and_fetch", "host_memory/recompute"]
        for record in records.values():
            line = json.loads(record.line())
            assert len(line["runs_s"]) == 2
            assert line["sizes"]["context"] == context
