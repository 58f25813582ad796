"""The planning benchmark times every part, on a mesh that gives a planner something to do."""

import json

from benchmarks.planning import make_gmanager, run
from distkv_jax.cache.view import view_of


def test_every_part_is_timed_and_the_sizes_say_what_the_plan_did():
    records = run(4, 40, limit=10_000, runs=2, seed=1)

    assert list(records) == ["planning/view", "planning/plan", "planning/dgfm"]
    for record in records.values():
        line = json.loads(record.line())
        assert len(line["runs_s"]) == 2
        assert line["sizes"]["instances"] == 4
        assert line["sizes"]["step_after_s"] <= line["sizes"]["step_before_s"]


def test_mesh_is_skewed_and_spans_instances():
    view = view_of(make_gmanager(16, 80, seed=0))

    assert any(len(request.blocks) > 1 for request in view.requests)
    assert all(instance.num_free >= 0 for instance in view.instances)
    assert len({instance.num_free for instance in view.instances}) > 2
