"""The answers of the HTTP server: the routes of contract section 4 and their content.

A page is made from a HostView. Connections and deadlines are in client.py, the format of metrics in exposition.py, HTML
in landing.py. Text that a guest or dom0 chose is escaped for the format of the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unplugd.core.escape import visible
from unplugd.http import landing
from unplugd.http.exposition import Exposition, choose
from unplugd.http.metrics import HostView

PLAIN = "text/plain; charset=utf-8"
JSON = "application/json"

SLICE = 5
"""Domains described between two turns of the event loop."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer. A `body` that is an iterator is sent piece by piece, and the event loop runs between two."""

    status: int
    type: str
    body: bytes | Iterator[bytes]
    headers: Sequence[tuple[str, str]] = field(default=())
    vary: str = "Accept-Encoding"
    """The request's fields on which the answer depends (RFC 9110 section 12.5.5)."""
    pending: Awaitable[bytes] | None = None
    """Gives the body where it is not known yet."""


def fault(status: int, text: str, path: str = "", headers: Sequence[tuple[str, str]] = ()) -> Page:
    """An error's page: JSON below /api/, a line of text elsewhere."""
    if path.startswith("/api/"):
        return Page(status, JSON, json.dumps({"error": text}).encode() + b"\n", headers)
    return Page(status, PLAIN, f"{text}\n".encode(), headers)


class Pages:
    """The routes of one service. With `everything`, also the pages that only the control socket serves."""

    def __init__(self, host: HostView) -> None:
        self._host = host
        self._exposition = Exposition(host)
        self._open: dict[str, Callable[[str, bool], Page]] = {
            "/metrics": self._metrics,
            "/-/healthy": self._healthy,
            "/-/ready": self._ready,
            "/": self._landing,
        }

    def answer(self, method: str, path: str, accept: str, *, everything: bool) -> Page:
        """The answer to a request. `path` is without its query; a HEAD is answered as its GET, without the body.

        `accept` is the request's Accept header, empty where there is none.
        """
        make = self._open.get(path) or (self._private(path) if everything else None)
        if make is None:
            return fault(404, "There is no such page.", path)
        if method not in ("GET", "HEAD"):
            return fault(405, "Only GET and HEAD are served here.", path, [("Allow", "GET, HEAD")])
        return make(accept, everything)

    def _private(self, path: str) -> Callable[[str, bool], Page] | None:
        if path == "/api/v1/status":
            return lambda accept, everything: Page(200, JSON, self._status())
        if path == "/api/v1/configuration":
            return lambda accept, everything: Page(200, JSON, b"", pending=self._configuration())
        if path == "/api/v1/domains":
            return lambda accept, everything: Page(200, JSON, self._domains())
        if found := re.fullmatch(r"/api/v1/domains/(0|[1-9][0-9]{0,4})", path):
            domid = int(found[1])
            return lambda accept, everything: self._domain(domid, path)
        return None

    def _metrics(self, accept: str, everything: bool) -> Page:
        content_type = choose(accept)
        return Page(200, content_type, self._exposition.pieces(content_type), vary="Accept, Accept-Encoding")

    def _healthy(self, accept: str, everything: bool) -> Page:
        return Page(200, PLAIN, b"unplugd is running.\n")

    def _ready(self, accept: str, everything: bool) -> Page:
        awaited = self._host.awaited
        if awaited:
            return fault(503, visible(f"unplugd is not ready, it waits for {awaited}."), headers=[("Retry-After", "1")])
        return Page(200, PLAIN, b"unplugd is ready.\n")

    def _status(self) -> Iterator[bytes]:
        host = self._host
        status = {
            "version": host.version,
            **host.standing.describe(),
            "ready": not host.awaited,
            "waiting_for": host.awaited,
            "problem": host.problem,
            "xenstore": {"connected": host.xenstore_up, "reconnects": host.counters.xenstore_reconnects},
            "blacklist": {"entries": host.blacklist_entries, "lookups": host.counters.blacklist_lookups},
            "domains": len(host.domains),
            "connections": host.connections,
            "lent_pages": host.lent_pages,
            "ioreqs": sum(host.counters.ioreqs.values()),
            "protocol_errors": host.counters.protocol_errors,
            "denied_connections": host.counters.denied_connections,
        }
        yield json.dumps(status).encode() + b"\n"

    async def _configuration(self) -> bytes:
        return json.dumps(await self._host.check_configuration()).encode() + b"\n"

    def _domain(self, domid: int, path: str) -> Page:
        try:
            found = {**self._host.describe(domid), "history": self._host.describe_history(domid)}
        except KeyError:
            return fault(404, f"There is no domain {domid}.", path)
        return Page(200, JSON, json.dumps(found).encode() + b"\n")

    def _domains(self) -> Iterator[bytes]:
        separator = '{"domains": ['
        for domids in self._slices():
            described = []
            for domid in domids:
                try:
                    described.append(json.dumps(self._host.describe(domid)))
                except KeyError:    # released since
                    continue
            if described:
                yield (separator + ", ".join(described)).encode()
                separator = ", "
        yield (separator + "]}\n" if separator.startswith("{") else "]}\n").encode()

    def _slices(self) -> Iterator[list[int]]:
        domids = sorted(self._host.domains)
        for start in range(0, len(domids), SLICE):
            yield domids[start : start + SLICE]

    def _landing(self, accept: str, everything: bool) -> Page:
        pieces = landing.pieces(self._host, self._slices(), everything=everything)
        return Page(200, landing.TYPE, pieces, landing.HEADERS)
