"""Opens pages in a headless browser, as a reader would: returns its console messages, and the elements that are wider
than the window.

1. The browser is started with its DevTools protocol on two pipes, its descriptors 3 and 4: JSON documents that end with
   a zero byte.
2. Each page gets a target of its own, a window of the asked width (narrower than browsers' own windows get), and is
   told to report its console, exceptions and failed requests.
3. When it has loaded, an expression is evaluated in it, or a picture is taken.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
_TIMEOUT_S = 40
_LAYOUT = """(() => {
  const wide = [...document.body.querySelectorAll("*")]
    .filter(e => e.getBoundingClientRect().right > ASKED + 1 && !e.closest(".scroll,pre,details")).map(e => e.tagName);
  const drawn = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect());
  return {width: innerWidth, document_width: document.documentElement.scrollWidth, wide, charts: drawn.map(box => Math.round(box.width)),
          columns: new Set(drawn.map(box => Math.round(box.left))).size, text: document.body.innerText};
})()"""


def find_browser() -> str | None:
    """Chromium or Chrome, where one is installed."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Opened:
    """complaints: of console, scripts and requests. width: of the window; document_width: with what can be scrolled to;
    wide: elements that reach beyond the window;
    charts: their widths; columns: of charts."""

    complaints: list[str]
    width: int
    document_width: int
    wide: list[str]
    charts: list[int]
    columns: int
    text: str


class Browser:
    """A running browser. folder: for its files."""

    def __init__(self, program: str, folder: Path):
        to_browser, self._in = os.pipe()
        self._out, their_end = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [
            program,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            *sandbox,
        ]
        ends = [
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser, their_end)
        ]  # out of the way of 3 and 4

        def take_descriptors() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            command, pass_fds=(3, 4), preexec_fn=take_descriptors, stderr=subprocess.DEVNULL
        )
        for end in (to_browser, their_end, *ends):
            os.close(end)
        self._buffer, self._last_id = b"", 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def open(self, page: Path, width: int) -> Opened:
        """Opens the page in a window of this width. Raises TimeoutError."""
        session, complaints = self._load(page, width, height=900)
        found = self._call(
            "Runtime.evaluate", session, expression=_LAYOUT.replace("ASKED", str(width)), returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return Opened(complaints, **found["result"]["value"])

    def take_picture(self, page: Path, width: int, height: int, picture: Path) -> None:
        """A PNG of the top of the page."""
        session, _ = self._load(page, width, height)
        picture.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", session)["data"]))

    def _load(self, page: Path, width: int, height: int) -> tuple[str, list[str]]:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self._call(f"{domain}.enable", session)
        self._call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._events.clear()
        self._call("Page.navigate", session, url=page.as_uri())
        deadline = time.monotonic() + _TIMEOUT_S
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive(deadline)
        self._call("Runtime.evaluate", session, expression="0")  # earlier messages have arrived by now
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
        return session, [json.dumps(event["params"]) for event in self._events if event["method"] in bad]

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no answer from the browser for {_TIMEOUT_S} s")
            part = os.read(self._out, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message
