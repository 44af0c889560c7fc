"""The web page at `/`: the state of the service, links to the other pages, and on the control socket the guests.

HTML with its own style sheet; no script, no picture, nothing from other hosts. Text that a guest or dom0 chose is
escaped twice: by core.escape (no control characters, no change of text direction) and for HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unplugd.core.escape import visible
from unplugd.http.metrics import HostView

TYPE = "text/html; charset=utf-8"

LINKS = (("/metrics", "metrics, for Prometheus"), ("/-/healthy", "200 while the service runs"),
         ("/-/ready", "200 once guests are served"))
PRIVATE_LINKS = (("/api/v1/domains", "the guests as JSON"), ("/api/v1/status", "the service as JSON"))


def pieces(host: HostView, slices: Iterable[list[int]], *, everything: bool) -> Iterator[bytes]:
    """The page. With `everything` it lists the guests, a slice of `slices` (domids) a piece."""
    awaited = host.awaited
    yield _HEAD.format(
        style=_STYLE,
        version=_text(host.version),
        state="wait" if awaited else "good",
        health=_text(f"not ready: waits for {awaited}" if awaited else "ready"),
        xenstore_state="good" if host.xenstore_up else "wait",
        xenstore="connected" if host.xenstore_up else "not connected",
        domains=len(host.domains),
        connections=host.connections,
        blacklisted=host.blacklist_entries,
    ).encode()
    if everything:
        yield _GUESTS_HEAD.encode()
        for domids in slices:
            yield "".join(_row(host, domid) for domid in domids).encode()
        yield b"</tbody></table></div>\n"
    links = (*LINKS, *PRIVATE_LINKS) if everything else LINKS
    items = "".join(f'<li><a href="{path}">{path}</a> <span>{_text(what)}</span></li>\n' for path, what in links)
    yield _FOOT.format(links=items, more="" if everything else _ELSEWHERE).encode()


def _row(host: HostView, domid: int) -> str:
    try:
        domain: Mapping[str, Any] = host.describe(domid)
    except KeyError:            # released since
        return ""
    name = domain["product_name"] or f"product {domain['product']}"
    driver = "-" if domain["product"] is None else name
    build = "-" if domain["build"] is None else str(domain["build"])
    verdict = _text(domain["verdict"] or "-")
    if domain["blacklisted"]:
        verdict = f'<b class="bad">{verdict.replace("refused", "blacklisted")}</b>'
    cells = (f'<a href="/api/v1/domains/{domid}">{domid}</a>', _text(domain["name"]), _text(driver), build, verdict,
             _text(", ".join(domain["unplugged"]) or "-"), _log(domain["log"]))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _log(log: Mapping[str, Any]) -> str:
    dropped = sum(log["dropped_lines"].values())
    said = [f"{log['lines']} {'line' if log['lines'] == 1 else 'lines'}"] if log["lines"] else []
    said += [f'<span class="wait">{dropped} dropped</span>'] if dropped else []
    said += ['<span class="wait">throttled</span>'] if log["throttled"] else []
    return ", ".join(said) or "-"


def _text(raw: str) -> str:
    return html.escape(visible(raw))


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #f6f7f9; --card: #fff; --line: #dfe3e8;
  --accent: #0b62ba; --good: #17754a; --wait: #9a4b00; --bad: #b83225; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --paper: #12161c; --card: #1a2029;
  --line: #2b333f; --accent: #6db3f8; --good: #4cc38a; --wait: #f0a35e; --bad: #ff7b6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -0.02em; }
h1 small { font-size: 1rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.75rem; }
p { margin: 0.25rem 0 1.5rem; color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.75rem; margin: 0; }
dl div, .table { background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; }
dl div { padding: 0.75rem 1rem; }
dt { color: var(--soft); font-size: 0.85rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.good { color: var(--good); } .wait { color: var(--wait); } .bad { color: var(--bad); }
ul { list-style: none; margin: 0; padding: 0; }
li { padding: 0.2rem 0; display: flex; flex-wrap: wrap; gap: 0 0.75rem; }
a { color: var(--accent); text-decoration: none; }
li a, code { font-family: ui-monospace, monospace; }
a:hover, a:focus { text-decoration: underline; }
li span { color: var(--soft); }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 0.9rem; border-top: 1px solid var(--line);
  white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
td:nth-child(n+6) { white-space: normal; min-width: 8rem; }
th:nth-child(4), td:nth-child(4) { text-align: right; }
thead th { border-top: 0; color: var(--soft); font-size: 0.85rem; font-weight: 500; }
"""

_HEAD = """<!doctype html>
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
<div><dt>xenstore</dt><dd class="{xenstore_state}">{xenstore}</dd></div>
<div><dt>Guests</dt><dd>{domains}</dd></div>
<div><dt>Connections</dt><dd>{connections}</dd></div>
<div><dt>Blacklisted builds</dt><dd>{blacklisted}</dd></div>
</dl>
"""

_GUESTS_HEAD = """<h2>Guests</h2>
<div class="table" tabindex="0"><table>
<thead><tr><th>ID</th><th>Name</th><th>Driver</th><th>Build</th><th>Verdict</th><th>Unplugged</th><th>Log</th></tr></thead>
<tbody>
"""

_ELSEWHERE = """<p>The guests are not shown here. In dom0: <code>unplugctl list</code></p>
"""

_FOOT = """<h2>Pages</h2>
<ul>
{links}</ul>
{more}</main>
</body>
</html>
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = (
    ("Content-Security-Policy",
     (f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
      " frame-ancestors 'none'")),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
)  # fmt: skip
"""What the page may load: its style sheet and nothing else."""
