"""`distkv serve` as people start it, on eight simulated instances, and requests for it."""

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serve.client import Client

ADMIN, ALICE = (f"{name}-0123456789abcdef" for name in ("admin", "alice"))
TEXT = (Path(__file__).parents[2] / "examples/long_prompt.txt").read_text()
COMMAND = (
    *(sys.executable, "-c", "import sys; from distkv_jax.cli import main; sys.exit(main())"),
    *"serve tiny --mesh cpu-8 --block-size 16 --num-blocks 20 --max-num-seqs 16 --quiet".split(),
    *"--port 0 --http-port 0".split(),
)


class Served(NamedTuple):
    """Where a server is."""

    address: str
    url: str


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Run a server with an admin's key and one of alice."""
    keys, log = folder / "keys", folder / "log"
    keys.write_text(f"ops {ADMIN} admin\nalice {ALICE}\n")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "--api-key-file", str(keys)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = ""
        while not (url := re.search(r"(https?://\S+)/v1", said)):
            line = process.stdout.readline()
            assert line, f"the server ended: {log.read_text()}"
            said += line
        address = re.search(r"gRPC on (\S+)", said)
        assert address is not None, said
        yield Served(address[1], url[1])
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def requests(served: Served, prompts: Mapping[str, str], **sampling: Any) -> Iterator[None]:
    """Have requests under way, each begun again when it ends; its id is its name.

    Args:
        served: Where.
        prompts: By the names of requests.
        **sampling: For all of them.
    """
    is_over = threading.Event()

    def keep(name: str, prompt: str) -> None:
        with Client(served.address, api_key=ADMIN) as client:
            while not is_over.is_set():
                stream = client.stream(prompt, {"ignore_eos": True, **sampling}, request_id=name)
                with contextlib.closing(stream) as outputs:
                    for _ in outputs:
                        if is_over.is_set():
                            break

    threads = [threading.Thread(target=keep, args=one, daemon=True) for one in prompts.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(60)
