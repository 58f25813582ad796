"""As a process: it starts without JAX where it can, and Ctrl-C ends it cleanly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "import sys; from distkv_jax.cli import main; sys.exit(main())")
# A runner in the background may have left SIGINT ignored, which children inherit.
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
# No such platform: whatever starts JAX's backend fails.
NO_BACKEND = {"JAX_PLATFORMS": "none-such"}


def environment(**more: str) -> dict[str, str]:
    cache = str(ROOT / ".cache" / "tests")
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache} | more


def test_the_package_and_its_help_are_imported_without_jax():
    code = (
        "import sys, distkv_jax, distkv_jax.cli.parser;"
        "distkv_jax.cli.parser.build_parser(); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout == "False\n"


def test_fit_starts_no_backend():
    done = subprocess.run(
        [*COMMAND, "fit", "tiny", "--mesh", "h100-8"],
        env=environment(**NO_BACKEND),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--stream",)])
def test_ctrl_c_ends_cleanly_with_130(form: tuple[str, ...]):
    flags = "--mesh cpu-2 --block-size 64 --num-blocks 64 --no-warm-up --max-num-seqs 4 --stats"
    argv = ["generate", "--token-ids", "7,8", "3", *flags.split(), *form]
    process = subprocess.Popen(
        [
            *COMMAND[:2],
            LISTENS + COMMAND[2],
            *argv,
            "--max-num-batched-tokens",
            "64",
            "--max-tokens",
            "none",
            "--ignore-eos",
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        # The last line before requests run.
        while "Maximum concurrency" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()

    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
