"""A real browser without a window: Chromium, driven through its DevTools pipe.

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:9877/", width=360, dark=True)
        page.evaluate("document.title")         # any JSON that the expression gives
        page.picture()                          # PNG
        page.complaints                         # what the console, the network and the content policy had to say

DevTools messages are JSON, each ended by a NUL (--remote-debugging-pipe); everything here blocks, with a deadline.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

DEADLINE = 60.0
"""Seconds for anything that the browser is asked, on a slow and busy machine."""


class LabError(Exception):
    """There is no browser here, or it does not answer."""


def executable() -> str:
    """The browser's path; it is installed where that is possible. LabError."""
    script = Path(__file__).with_name("get-chromium.sh")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{script.name} failed")
    return done.stdout.strip()


class Page:
    """A page that has been loaded."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        """Errors and warnings that the browser noted while it loaded the page."""

    def call(self, method: str, **arguments: Any) -> Any:
        """A DevTools method of this page."""
        return self._browser.call(method, self._session, **arguments)

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON has it. The page's own policy does not bind it."""
        answer = self.call("Runtime.evaluate", expression=f"JSON.stringify({expression})")
        assert "exceptionDetails" not in answer, answer
        return json.loads(answer["result"]["value"])

    def picture(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


class Browser:
    """One browser process with a profile of its own."""

    def __init__(self) -> None:
        self._command = executable()
        self._profile = tempfile.mkdtemp(prefix="browser-")
        self._number = 0
        self._buffer = b""
        self._pages: dict[str, Page] = {}
        self._loaded: set[str] = set()

    def __enter__(self) -> Self:
        to_it, self._write = os.pipe()
        self._read, from_it = os.pipe()

        def take_three_and_four() -> None:
            copies = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in (to_it, from_it)]
            for copy, number in zip(copies, (3, 4), strict=True):
                os.dup2(copy, number)

        options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "--no-first-run",
                   "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # it refuses to run as root with one
        with Path(self._profile, "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, close_fds=False,
                preexec_fn=take_three_and_four,  # noqa: PLW1509 # no threads here
            )  # fmt: skip
        os.close(to_it)
        os.close(from_it)
        self.version = str(self.call("Browser.getVersion")["product"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """Load a page in a window of that size. LabError where it does not load."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Log", "Runtime"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded.discard(session)
        answer = page.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise LabError(f"{url}: {answer['errorText']}")
        end = time.monotonic() + DEADLINE
        while session not in self._loaded:
            self._take(end)
        return page

    def call(self, method: str, session: str | None = None, **arguments: Any) -> Any:
        """A DevTools method; its result. LabError."""
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if session is not None:
            request["sessionId"] = session
        os.write(self._write, json.dumps(request).encode() + b"\0")
        end = time.monotonic() + DEADLINE
        while (message := self._take(end)).get("id") != self._number:
            pass
        if "error" in message:
            raise LabError(f"{method}: {message['error']}")
        return message["result"]

    def _take(self, end: float) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not piece:
                said = Path(self._profile, "log").read_text(errors="replace")[-2000:]
                raise LabError(f"the browser {'ended' if ready else 'does not answer'}: {said}")
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        session = str(message.get("sessionId"))
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded.add(session)
            case "Log.entryAdded":
                entry = message["params"]["entry"]
                self._pages[session].complaints.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self._pages[session].complaints.append(raw.decode())
        return message
