"""A control socket that answers what a test says, and domains as the API has them: unplugctl without the daemon."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UUID = "4f0e0c5e-0000-4000-8000-{:012d}"


def domain(domid: int = 7, name: str = "web-01", **changes: Any) -> dict[str, Any]:
    """A domain's JSON object; `log` is merged, all else replaced."""
    log = {
        "lines": 0, "bytes": 0, "dropped_lines": {"rate-limit": 0, "sink": 0},
        "dropped_bytes": {"rate-limit": 0, "sink": 0}, "throttled": False, "limited": True,
        "rate": 256, "burst": 131072, "balance": 131072,
    } | changes.pop("log", {})  # fmt: skip
    return {
        "domid": domid, "name": name, "uuid": UUID.format(domid), "product": None, "product_name": None, "build": None,
        "blacklisted": False, "blacklist_reason": "", "verdict": None, "rule": None, "guest_rule": None,
        "unplugged": [], "unplugged_mask": 0, "connections": 1,
        "log": log,
    } | changes  # fmt: skip


def blacklisted(domid: int = 7, name: str = "win-01", **changes: Any) -> dict[str, Any]:
    """One whose driver is blacklisted."""
    return domain(
        domid, name,
        **{"product": 1, "product_name": "xensource-windows", "build": 86451, "blacklisted": True,
           "verdict": "refused", "rule": "xenstore's node xensource-windows/86451 (refuse)",
           "blacklist_reason": "loses data on resume"} | changes,
    )  # fmt: skip


class ControlSocket:
    """Answers pages: a path to status and body. One that is not there is a 404."""

    def __init__(self, path: Path, pages: dict[str, tuple[int, bytes]]) -> None:
        self.path = path
        self.pages = pages
        self.raw: bytes | None = None
        """Sent as it is instead of an answer, if there is one."""
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request and (piece := connection.recv(4096)):
                    request += piece
                if not request:
                    continue
                page = request.split()[1].decode()
                self.asked.append(page)
                status, body = self.pages.get(page, (404, b'{"error": "no"}'))
                answer = f"HTTP/1.1 {status} whatever\r\nConnection: close\r\n\r\n".encode() + body
                connection.sendall(answer if self.raw is None else self.raw)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def status(**changes: Any) -> dict[str, Any]:
    """The service's JSON object, /api/v1/status."""
    return {
        "version": "0.1.0", "pid": 17, "started": 1795428616.464,
        "configuration": {"files": [], "since": 1795428616.464, "reloads": 0, "refused": None},
        "ready": True, "waiting_for": "", "problem": "", "xenstore": {"connected": True, "reconnects": 0},
        "blacklist": {"entries": 1, "lookups": {"allowed": 3, "blacklisted": 1, "reported": 0, "unknown-product": 0,
                                                 "fallback": 0}},
        "domains": 0, "connections": 1, "lent_pages": [], "ioreqs": 5, "protocol_errors": {"bad-type": 0},
        "denied_connections": 0,
    } | changes  # fmt: skip


@contextlib.contextmanager
def serving(*domains: dict[str, Any], **said: Any) -> Iterator[ControlSocket]:
    """A control socket of a service with these domains; `said` is what its status has otherwise."""
    pages = {"/api/v1/domains": (200, json.dumps({"domains": list(domains)}).encode())}
    pages |= {f"/api/v1/domains/{one['domid']}": (200, json.dumps(one).encode()) for one in domains}
    pages["/-/ready"] = (200, b"unplugd is ready.\n")
    pages["/api/v1/status"] = (200, json.dumps(status(**said)).encode())
    with tempfile.TemporaryDirectory(prefix="u-") as directory:
        control = ControlSocket(Path(directory) / "control.sock", pages)
        try:
            yield control
        finally:
            control.close()
