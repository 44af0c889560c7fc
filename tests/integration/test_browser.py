"""The page at `/` in a real browser: nothing is broken, everything can be read, in light and dark, narrow and wide."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.chromium import Browser, LabError, Page
from tests.lab.daemon import Daemon, embedded, merged, uuid

EVIL = '<script>document.title="run"</script><b onmouseover=alert(1)>\u202e' + "x" * 150

# The colour behind an element is that of its nearest ancestor that has one. Contrast as WCAG 2.1 counts it.
CONTRASTS = """
(() => {
  const channels = text => text.match(/[0-9.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = channels(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("main *")].filter(node => node.innerText && !node.children.length).map(node => {
    const [dark, light] = [channels(getComputedStyle(node).color), behind(node)].map(luminance).sort((a, b) => a - b);
    return [node.innerText.slice(0, 40), (light + 0.05) / (dark + 0.05)];
  });
})()
"""


class Relay:
    """A TCP port of 127.0.0.1 for a unix socket: browsers speak no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._path))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        started = Browser()
    except LabError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with started:
        yield started


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    settings = embedded(*range(1, 40), blacklist={"entry": [{"product": "xensource-windows", "build": 86451}]})
    evil = {"domid": 40, "name": EVIL, "uuid": uuid(40)}
    settings["xenstore"]["domain"].append(evil)
    started = Daemon(merged(settings, {"log": {"rate": 1, "burst": 4096}}))
    try:
        started.listen()
        started.start()
        with started.connect(1) as guest:
            guest.announce(1, 86451)
        with started.connect(40) as guest:
            guest.announce(3, 1)
            guest.write(0x10, 2, 15)
            guest.log(b"<i>line</i>\n" * 100)
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module", params=["tcp", "control"])
def url(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[str]:
    if request.param == "tcp":
        yield f"http://127.0.0.1:{daemon.port}/"
        return
    relay = Relay(daemon.runtime / "control.sock")
    yield f"http://127.0.0.1:{relay.port}/"
    relay.close()


def has_guests(page: Page) -> bool:
    return bool(page.evaluate("document.querySelector('table') !== null"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1600])
def test_it_can_be_read(browser: Browser, url: str, width: int, dark: bool, tmp_path: Path) -> None:
    page = browser.open(url, width=width, dark=dark)
    (tmp_path / "page.png").write_bytes(page.picture())
    assert page.complaints == []
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    # nothing is wider than the window; a wide table scrolls within its frame
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) is dark
    # its own style sheet holds, and no text is cut or lies over another
    assert page.evaluate("getComputedStyle(document.querySelector('dl')).display") == "grid"
    assert page.evaluate("[...document.querySelectorAll('dd, dt, li, h1')].every(n => n.scrollWidth <= n.clientWidth)")


def test_health_version_and_links(browser: Browser, url: str) -> None:
    page = browser.open(url)
    text = page.evaluate("document.body.innerText")
    assert page.evaluate("document.title") == "unplugd"
    assert "unplugd 0.1.0" in text
    assert "ready" in text
    assert "connected" in text
    links = page.evaluate("[...document.querySelectorAll('li a')].map(link => link.href)")
    assert links[0] == f"{url}metrics"
    for link in links:
        assert browser.open(link).evaluate("performance.getEntriesByType('navigation')[0].responseStatus") == 200


def test_names_are_text(browser: Browser, url: str) -> None:
    page = browser.open(url)
    assert page.evaluate("document.title") == "unplugd"
    assert page.evaluate("document.scripts.length") == 0
    attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap(n => n.getAttributeNames())")
    assert [name for name in attributes if name.startswith("on")] == []
    if not has_guests(page):
        assert "vm1" not in page.evaluate("document.body.innerText")
        return
    rows = page.evaluate("[...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText))")
    assert len(rows) == 40
    assert rows[0][1:5] == ["vm1", "xensource-windows", "86451", "blacklisted"]
    evil = rows[-1]
    assert evil[1] == EVIL.replace("\u202e", "\\xe2\\x80\\xae")
    assert "dropped" in evil[6]
    # however long a name is, what was decided about the guest can be seen beside it
    verdict = "document.querySelector('tbody tr:last-child td:nth-child(5)')"
    assert page.evaluate(f"{verdict}.getBoundingClientRect().right") < 1200


def test_only_the_control_socket_shows_guests(browser: Browser, url: str, daemon: Daemon) -> None:
    assert has_guests(browser.open(url)) is (str(daemon.port) not in url)
