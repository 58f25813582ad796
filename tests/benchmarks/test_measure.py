"""A measurement keeps every run, with compiling apart and cases taking turns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.bandwidth import bytes_per_s, make_reader, read_memory
from benchmarks.measure import Machine, Record, machine, measure, timed

HERE = Machine("cpu: x", 1, 2, "0", "0", "3", "abc")


def make_record(runs_s: tuple[float, ...] = (3.0, 1.0, 2.0)) -> Record:
    return Record(
        case="case",
        sizes={"tokens": 8, "dtype": "float32"},
        first_s=9.0,
        compile_s=5.0,
        runs_s=runs_s,
        machine=HERE,
    )


def test_first_run_is_apart_and_every_later_run_is_kept():
    calls: list[int] = []

    [record] = measure({"count": lambda: calls.append(1)}, sizes={}, runs=3).values()

    assert len(calls) == 4
    assert len(record.runs_s) == 3
    assert record.first_s > 0


def test_cases_take_turns():
    order: list[str] = []

    measure({name: lambda name=name: order.append(name) for name in "ab"}, sizes={}, runs=2)

    assert order == ["a", "b"] * 3


def test_no_runs_is_refused():
    with pytest.raises(ValueError, match="runs=0 must be at least 1"):
        measure({"none": lambda: None}, sizes={}, runs=0)


def test_compile_time_is_in_the_first_run_only():
    add = jax.jit(lambda x: x * 3 + 1)
    x = jnp.ones(5)

    first, second = timed(lambda: add(x)), timed(lambda: add(x))

    assert 0 < first.compile_s <= first.seconds
    assert second.compile_s == 0
    np.testing.assert_array_equal(first.result, np.full(5, 4.0))


def test_line_is_json_with_machine_and_runs_and_without_a_median():
    record = make_record()

    fields = json.loads(record.line())

    assert fields["runs_s"] == [3.0, 1.0, 2.0]
    assert fields["machine"] == HERE._asdict()
    assert fields["sizes"] == {"tokens": 8, "dtype": "float32"}
    assert "median_s" not in fields
    assert record.median_s == 2.0


def test_machine_names_device_and_versions():
    here = machine()

    assert here.device.startswith("cpu: ")
    assert here.num_devices == 8
    assert here.jax == jax.__version__
    assert here.num_cores >= 1
    assert here.commit


def test_reading_memory_reports_what_was_read():
    record = read_memory(num_bytes=1 << 20, runs=2)

    assert record.sizes["num_bytes"] == 1 << 20
    assert record.sizes["how"] in ("cc", "numpy")
    assert bytes_per_s(record) == (1 << 20) / record.median_s


def test_without_a_compiler_numpy_reads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.bandwidth.COMPILE", ["no-such-compiler"])

    reader = make_reader()

    assert reader.how == "numpy"
    assert reader.read(np.arange(8)) == 0


def test_reader_reads_every_word():
    words = np.arange(1, 1001)

    assert make_reader().read(words) == np.bitwise_xor.reduce(words)
