"""A headless Chromium, driven by its DevTools protocol: pages, their scripts, their complaints."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

TIMEOUT_S = 40
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""
"""Run before anything of a page is."""


def program() -> str:
    """Find a Chromium; without one nothing here can be tested."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.exit(
            f"none of {', '.join(PROGRAMS)} is installed, `apt-get install chromium` brings one",
            returncode=2,
        )
    return found


class Page:
    """One tab; everything it complains of is kept.

    Attributes:
        complaints: Errors and warnings of its console and its log, and exceptions.
        answers: Status of everything it loaded, by path.
    """

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.complaints: list[str] = []
        self.answers: dict[str, int] = {}
        self._socket = socket
        self._session = session
        self._ids = itertools.count(1)
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=VIOLATIONS)

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and wait for its answer."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps({**message, "sessionId": self._session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=TIMEOUT_S))
            if answer.get("id") == number and answer.get("sessionId") == self._session:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._hear(answer.get("method"), answer.get("params", {}))

    def _hear(self, event: str | None, told: Any) -> None:
        match event:
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(told["entry"]))
            case "Network.responseReceived":
                path = re.sub(r"^\w+://[^/]+|\?.*$", "", told["response"]["url"])
                self.answers[path] = told["response"]["status"]
            case _:
                pass

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Go to a page, in a window of a size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """Evaluate an expression, or wait for the promise it gives."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Wait until an expression gives something true, and give that."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := self.value(script)):
            assert time.monotonic() < deadline, f"never: {script}; {self.complaints}"
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        """Press a key and let go of it."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move_to(self, selector: str) -> None:
        """Move the pointer over the first element of a selector."""
        element = f"document.querySelector({json.dumps(selector)})"
        x, y = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"({element}.getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def save_picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[ClientConnection]:
    """Run a browser with a profile of its own, and connect to it."""
    process = subprocess.Popen(
        [
            program(),
            "--headless=new",
            # What it opens is this test's own server, and root has no sandbox.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    port_file = folder / "DevToolsActivePort"
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
            assert process.poll() is None, f"chromium ended with {process.returncode}"
            assert time.monotonic() < deadline, "chromium does not listen"
            time.sleep(0.02)
        port, path = port_file.read_text().splitlines()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
            yield socket
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@contextlib.contextmanager
def new_page(socket: ClientConnection) -> Iterator[Page]:
    """Open a tab that shares nothing with others."""
    numbers = itertools.count(10**9)

    def call(method: str, **parameters: Any) -> Any:
        number = next(numbers)
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(socket.recv(timeout=TIMEOUT_S))
            if answer.get("id") == number:
                return answer["result"]

    context = call("Target.createBrowserContext")["browserContextId"]
    target = call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    try:
        yield Page(socket, session)
    finally:
        call("Target.disposeBrowserContext", browserContextId=context)
