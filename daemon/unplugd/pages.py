"""What the HTTP server answers: the routes of contract section 4 and the text of their answers.

A page is made from a HostView and knows nothing of connections and deadlines (http.py) nor of the format of metrics
(exposition.py). All that a guest or dom0 chose is escaped here for the format that it goes into.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unplugd.core.protocol import device_names
from unplugd.exposition import Exposition, choose, legible
from unplugd.metrics import HostView

PLAIN = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"

SLICE = 50
"""Domains described between two turns of the event loop."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer. A `body` that is an iterator is sent piece by piece, and the event loop runs between two."""

    status: int
    type: str
    body: bytes | Iterator[bytes]
    headers: Sequence[tuple[str, str]] = field(default=())


def fault(status: int, text: str, path: str = "", headers: Sequence[tuple[str, str]] = ()) -> Page:
    """An error's page: JSON below /api/, a line of text elsewhere."""
    if path.startswith("/api/"):
        return Page(status, JSON, json.dumps({"error": text}).encode() + b"\n", headers)
    return Page(status, PLAIN, f"{text}\n".encode(), headers)


class Pages:
    """The routes of one service. `everything` is what the control socket serves beyond the TCP listener's."""

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
            return lambda accept, everything: Page(200, JSON, json.dumps(self._status()).encode() + b"\n")
        if path == "/api/v1/domains":
            return lambda accept, everything: Page(200, JSON, self._domains())
        if found := re.fullmatch(r"/api/v1/domains/(0|[1-9][0-9]{0,4})", path):
            domid = int(found[1])
            return lambda accept, everything: self._domain(domid, path)
        return None

    def _metrics(self, accept: str, everything: bool) -> Page:
        content_type = choose(accept)
        return Page(200, content_type, self._exposition.pieces(content_type), [("Vary", "Accept")])

    def _healthy(self, accept: str, everything: bool) -> Page:
        return Page(200, PLAIN, b"unplugd is running.\n")

    def _ready(self, accept: str, everything: bool) -> Page:
        awaited = self._host.awaited
        if awaited:
            return fault(503, legible(f"unplugd is not ready, it waits for {awaited}."), headers=[("Retry-After", "1")])
        return Page(200, PLAIN, b"unplugd is ready.\n")

    def _status(self) -> dict[str, object]:
        host = self._host
        return {
            "version": host.version,
            **host.standing.describe(),
            "ready": not host.awaited,
            "waiting_for": host.awaited,
            "problem": host.problem,
            "xenstore": {"connected": host.xenstore_up, "reconnects": host.counters.xenstore_reconnects},
            "blacklist": {"entries": host.blacklist_entries, "lookups": host.counters.blacklist_lookups},
            "domains": len(host.domains),
            "connections": host.connections,
            "ioreqs": sum(host.counters.ioreqs.values()),
            "protocol_errors": host.counters.protocol_errors,
            "denied_connections": host.counters.denied_connections,
        }

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
        return Page(200, HTML, self._landing_pieces(everything), LANDING_HEADERS)

    def _landing_pieces(self, everything: bool) -> Iterator[bytes]:
        host = self._host
        awaited = host.awaited
        health = f"not ready: waits for {awaited}" if awaited else "ready"
        links = [("/metrics", "metrics, for Prometheus"), ("/-/healthy", "200 while the service runs"),
                 ("/-/ready", "200 once guests are served")]
        if everything:
            links += [("/api/v1/domains", "the domains as JSON"), ("/api/v1/status", "the service as JSON")]
        yield _LANDING.format(
            style=_STYLE,
            version=_text(host.version),
            state="wait" if awaited else "good",
            health=_text(health),
            xenstore="connected" if host.xenstore_up else "not connected",
            domains=len(host.domains),
            connections=host.connections,
            links="".join(f'<li><a href="{path}">{path}</a> <span>{_text(what)}</span></li>' for path, what in links),
        ).encode()
        if everything:
            yield _GUESTS_HEAD.encode()
            for domids in self._slices():
                yield "".join(self._guest_row(domid) for domid in domids).encode()
            yield b"</tbody></table></div>\n"
        yield b"</main></body></html>\n"

    def _guest_row(self, domid: int) -> str:
        domain = self._host.domains.get(domid)
        if domain is None:          # released since
            return ""
        product, build = ("" if number is None else str(number) for number in (domain.product, domain.build))
        verdict = '<b class="bad">blacklisted</b>' if domain.blacklisted else ""
        unplugged = device_names(domain.unplugged) if domain.unplugged else ""
        cells = (str(domid), _text(domain.name), product, build, verdict, _text(unplugged))
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _text(raw: str) -> str:
    return html.escape(legible(raw))


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #f6f7f9; --card: #fff; --line: #dfe3e8;
  --accent: #0b6bcb; --good: #1a7f4b; --wait: #b35900; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --paper: #12161c; --card: #1a2029;
  --line: #2b333f; --accent: #6db3f8; --good: #4cc38a; --wait: #f0a35e; --bad: #ff7b6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 3rem 1.25rem; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -0.02em; }
h1 small { font-size: 1rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.75rem; }
p { margin: 0.25rem 0 1.5rem; color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.75rem; margin: 0; }
dl div, .table { background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; }
dl div { padding: 0.75rem 1rem; }
dt { color: var(--soft); font-size: 0.85rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.good { color: var(--good); } .wait { color: var(--wait); } .bad { color: var(--bad); }
ul { list-style: none; margin: 0; padding: 0; }
li { padding: 0.2rem 0; }
a { color: var(--accent); font-family: ui-monospace, monospace; text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
li span { color: var(--soft); margin-left: 0.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.45rem 0.9rem; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-size: 0.85rem; font-weight: 500; }
"""

_LANDING = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>unplugd</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>unplugd <small>{version}</small></h1>
<p>Xen's emulated device unplug protocol: driver blacklist, guest log and metrics.</p>
<dl>
<div><dt>Health</dt><dd class="{state}">{health}</dd></div>
<div><dt>xenstore</dt><dd>{xenstore}</dd></div>
<div><dt>Domains</dt><dd>{domains}</dd></div>
<div><dt>Device model connections</dt><dd>{connections}</dd></div>
</dl>
<h2>Pages</h2>
<ul>{links}</ul>
"""

_GUESTS_HEAD = """<h2>Guests</h2>
<div class="table"><table>
<thead><tr><th>Domid</th><th>Name</th><th>Product</th><th>Build</th><th>Verdict</th><th>Unplugged</th></tr></thead>
<tbody>
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

LANDING_HEADERS = (
    ("Content-Security-Policy",
     (f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
      " frame-ancestors 'none'")),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
)  # fmt: skip
"""The page has one style sheet, its own, and nothing from elsewhere."""
