"""The far end of `distkv launch`: runs one process, and ends it when its launcher is gone.

Whoever starts a process over ssh can neither signal it nor be sure that it ends with the
connection; on its own machine it may be killed before it ends it. This one reads standard input:
first the join token, then one order in each line (`TERM`, `INT`, `KILL`, `KILL 4711` for that
process only); its end means that the launcher is gone.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from serve.launch.local import COMMAND

ORDERS = {
    "TERM": signal.SIGTERM,
    "INT": signal.SIGINT,
    "KILL": signal.SIGKILL,
}


LAST_WORDS_S = 0.5
"""For the output of a process that has ended."""
PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Run `distkv` with the words after `--`, and a file for the token.

    Returns:
        The exit code of the process; 128 and the signal's number if one ended it.
    """
    parser = argparse.ArgumentParser(prog="guard")
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("words", nargs="+")
    args = parser.parse_args(argv)
    token = sys.stdin.buffer.readline()
    with tempfile.TemporaryDirectory(prefix="distkv-") as folder:
        token_file = Path(folder) / "join-token"
        token_file.touch(mode=0o600)
        token_file.write_bytes(token)
        process = subprocess.Popen(
            [*COMMAND, *args.words, "--join-token-file", str(token_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda given, _: process.send_signal(given))
        threading.Thread(target=obey, args=(process, args.grace_s), daemon=True).start()
        copier = threading.Thread(target=pass_on, args=(process,), daemon=True)
        copier.start()
        try:
            code = process.wait()
            # What it started may hold the pipe for longer.
            copier.join(LAST_WORDS_S)
        finally:
            process.kill()
    return code if code >= 0 else 128 - code


def die_with_parent() -> None:
    """Let Linux kill this process when its guard is killed; others have no such call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def pass_on(process: "subprocess.Popen[bytes]") -> None:
    """Copy what the process says; once nobody listens, it may go on saying it."""
    assert process.stdout is not None
    target: int | None = sys.stdout.fileno()
    with process.stdout as output:
        while piece := os.read(output.fileno(), 65536):
            try:
                while target is not None and piece:
                    piece = piece[os.write(target, piece) :]
            except OSError:
                target = None


def obey(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Hand on the orders; when they end, stop the process as SIGTERM does, then harder."""
    for line in sys.stdin.buffer:
        name, _, pid = line.decode(errors="replace").strip().partition(" ")
        if name in ORDERS and pid in ("", str(process.pid)):
            process.send_signal(ORDERS[name])
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    process.kill()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # The thread may be reading standard input, which the interpreter would wait for.
    os._exit(code)
