"""The native library is built once, holds every instruction set, and says what it cannot do."""

import logging
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_pool import empty_pool
from pallas_kernels.micro_attention import cpu
from pallas_kernels.micro_attention.cpu import build


def call(q_dtype: np.dtype, kv_dtype: np.dtype, instruction_set: str | None = None) -> None:
    lists = jnp.zeros(1, jnp.int32)
    q = jnp.zeros((1, 1, 2, 8), q_dtype)
    pool = empty_pool((2, 2, 1, 4, 8), np.dtype(kv_dtype))
    rows = jnp.zeros((1, 5), jnp.int32)
    cpu.micro_attention_cpu(q, pool, lists, lists, rows, scale=1.0, instruction_set=instruction_set)


def test_the_processor_has_the_instruction_sets_that_are_offered_best_first() -> None:
    features = {"avx512bf16": "avx512_bf16", "avx512": "avx512dq", "avx2": "avx2", "native": ""}

    assert cpu.instruction_sets() == tuple(
        name for name in build.instruction_sets_of_machine() if features[name] in build.processor()
    )


def test_loading_says_with_which_instruction_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(build._loaded[0]._name).parent
    monkeypatch.setattr(build, "_loaded", [])
    monkeypatch.setattr(build.jax.ffi, "register_ffi_target", lambda *_, **__: None)

    with caplog.at_level(logging.INFO):
        assert cpu.load(folder)

    assert caplog.messages == [f"native CPU attention: {cpu.instruction_sets()[0]}"]


def test_every_source_is_part_of_the_librarys_name() -> None:
    code = build.sources()

    names = {build.digest(code | {file: "other"}, "c++") for file in code}

    assert {"attend.cc", "kernel.cc", "kv_write.cc", "numbers.h"} <= set(code)
    assert len(names | {build.digest(code, "c++")}) == len(code) + 1


@pytest.mark.parametrize(
    ("compilers", "failure", "message"),
    [
        (("c--",), None, "no C++ compiler found, looked for c--"),
        (
            ("c++",),
            subprocess.CalledProcessError(1, "c++", stderr="a.h:1: bad\nmore"),
            "a.h:1: bad",
        ),
    ],
    ids=["none", "failing"],
)
def test_without_a_library_one_line_says_why(
    compilers: tuple[str, ...],
    failure: Exception | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def fail(*_: object) -> None:
        assert failure is not None
        raise failure

    monkeypatch.setattr(build, "_loaded", [])
    monkeypatch.setattr(build, "COMPILERS", compilers)
    monkeypatch.setattr(build, "run_compiler", fail)

    with caplog.at_level(logging.INFO):
        assert not cpu.load(tmp_path)

    assert caplog.messages == [f"no native CPU attention, XLA's is used: {message}"]
    assert list(tmp_path.iterdir()) == []
    assert cpu.instruction_sets() == ()
    with pytest.raises(RuntimeError, match="implementation 'cpu' is not loaded"):
        call(np.dtype(np.float32), np.dtype(np.float32))


@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype", "is_taken"),
    [
        (jnp.float32, jnp.float32, True),
        (jnp.float32, jnp.bfloat16, True),
        (jnp.bfloat16, jnp.bfloat16, True),
        (jnp.bfloat16, jnp.int8, True),
        (jnp.float32, jnp.float8_e4m3fn, True),
        (jnp.bfloat16, jnp.float32, False),
        (jnp.float16, jnp.float16, False),
        (jnp.float32, jnp.float16, False),
    ],
)
def test_other_dtypes_are_refused(q_dtype: type, kv_dtype: type, is_taken: bool) -> None:
    q, kv = np.dtype(q_dtype), np.dtype(kv_dtype)

    assert cpu.takes(q, kv) == is_taken
    if is_taken:
        call(q, kv)
    else:
        with pytest.raises(
            TypeError,
            match=f"q is {q}, pool is {kv}, expected q of float32, bfloat16, at least as wide as a "
            "pool of float32, bfloat16, int8, float8_e4m3fn",
        ):
            call(q, kv)


def test_an_instruction_set_that_the_processor_lacks_is_refused() -> None:
    known = ", ".join(cpu.instruction_sets())

    with pytest.raises(ValueError, match=f"instruction_set='mmx' must be one of {known}"):
        call(np.dtype(np.float32), np.dtype(np.float32), instruction_set="mmx")
