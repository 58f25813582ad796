"""Takes the pictures of docs/images: `python -m tests.browser.picture docs/images`."""

import collections
import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from distkv_jax.cli.top import picture
from serve.client import Client
from serve.proto.distkv.v1 import control_pb2 as pb
from tests.browser.chromium import chromium, new_page
from tests.browser.serving import ADMIN, TEXT, Served, requests, serving
from tests.browser.test_page import LIVE, open_with_key

PROMPTS = {
    "novel-chapter": TEXT[:3000],
    "report": TEXT[:900],
    "letter-17": TEXT[:400],
    "essay": TEXT[:300],
    "chat-alice": "It is a truth universally acknowledged, that",
    "chat-bob": "In the beginning",
}
MAX_TOKENS = {"novel-chapter": 220, "report": 160, "letter-17": 260, "essay": 320}
WARM_S = 50
"""For the curves."""


def main(folder: Path) -> None:
    """Serve, watch, and write what is seen."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        browser = stack.enter_context(chromium(scratch / "chromium"))
        served = stack.enter_context(serving(scratch))
        for name, prompt in PROMPTS.items():
            number = MAX_TOKENS.get(name, 200)
            stack.enter_context(requests(served, {name: prompt}, max_tokens=number))
        time.sleep(WARM_S)
        page = stack.enter_context(new_page(browser))
        open_with_key(page, served)
        page.wait_for(f"{LIVE} && {GOOD_MOMENT}")
        page.save_picture(folder / "live.png")
        save_top(served, folder / "top.svg")


GOOD_MOMENT = """
document.querySelectorAll("tr[data-activity=running]").length >= 5
  && document.querySelectorAll(".cell[data-request]").length > 90
  && document.querySelectorAll("path.debt").length >= 5
  && document.querySelectorAll("path.debt").length <= 13
"""


def save_top(served: Served, file: Path) -> None:
    """Write what `distkv top` shows."""
    with open(os.devnull, "w") as nowhere, Client(served.address, api_key=ADMIN) as client:
        console = Console(record=True, width=110, file=nowhere, force_terminal=True)
        points: collections.deque[pb.Point] = collections.deque(maxlen=300)
        with contextlib.closing(client.watch(0.5)) as snapshots:
            for snapshot in snapshots:
                if sum(len(one.blocks) > 0 for one in snapshot.requests) >= 5:
                    console.print(picture(snapshot, points, console.width, None))
                    break
    # A picture in a repository asks nobody for fonts.
    svg = console.export_svg(title="distkv top")
    file.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
