"""A stand-in for `ssh` to hosts that are network namespaces: what it carries stops with their link.

    python network_ssh.py FOLDER PREFIX -o OPTION ... HOST COMMAND

While FOLDER/cut-HOST exists nothing passes, in either direction, and no end is told; a new one
gives up after a while with code 255. SIGTERM is its finding out: it hangs up and ends with 255, as
ServerAliveInterval has ssh do, and the far end sees its input end. FOLDER/ssh-HOST has its pid.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

CONNECT_S = 2.0
LOST = 255


def main(words: Sequence[str]) -> int:
    """Run a command on a host; gives its exit code."""
    folder, prefix, *rest = words
    while rest[0].startswith("-"):
        rest = rest[2 if rest[0] == "-o" else 1 :]
    host, *command = rest
    cut = Path(folder, f"cut-{host}")
    deadline = time.monotonic() + CONNECT_S
    while cut.exists():
        if time.monotonic() > deadline:
            print(f"ssh: connect to host {host} port 22: Connection timed out", file=sys.stderr)
            return LOST
        time.sleep(0.1)
    Path(folder, f"ssh-{host}").write_text(f"{os.getpid()}")
    far = subprocess.Popen(
        ["ip", "netns", "exec", f"{prefix}{host}", "sh", "-c", " ".join(command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What is sent to this one is not sent there.
        start_new_session=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: os._exit(LOST))
    assert far.stdin is not None and far.stdout is not None
    threading.Thread(target=carry, args=(0, far.stdin.fileno(), cut), daemon=True).start()
    carry(far.stdout.fileno(), 1, cut)
    code = far.wait()
    wait_for_link(cut)
    return code if code >= 0 else 128 - code


def carry(source: int, target: int, cut: Path) -> None:
    """Copy until the end, which is handed on too."""
    try:
        while piece := os.read(source, 65536):
            wait_for_link(cut)
            while piece:
                piece = piece[os.write(target, piece) :]
    except OSError:
        pass  # the other end has gone
    if target > 2:
        wait_for_link(cut)
        os.close(target)


def wait_for_link(cut: Path) -> None:
    """Wait while the link is cut."""
    while cut.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # The thread may be reading standard input, which the interpreter would wait for.
    os._exit(code)
