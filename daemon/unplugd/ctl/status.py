"""`unplugctl status`: whether unplugd runs and does its job, in ten lines.

It asks what Prometheus asks (/metrics, /-/ready), so that the two can never say different things.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import NO, NOT_RUNNING, OK, Failure

if TYPE_CHECKING:
    from argparse import Namespace

_SAMPLE = re.compile(r'(unplugd_[a-z_]+)(?:\{(.*)\})? ([-+0-9.eE]+|NaN|[+-]Inf)$')
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """unplugd's own series of an exposition: name to labels and value. Text that is no sample is passed over."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.split("\n"):
        match = _SAMPLE.match(line)
        if match:
            labels = dict(_LABEL.findall(match[2] or ""))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def gather(control: Control) -> dict[str, Any]:
    """All that is shown, under its JSON keys. Raises Failure."""
    pid, _ = control.peer()
    ready, said = control.get("/-/ready")
    status, text = control.get("/metrics")
    if status != 200:
        raise Failure(NOT_RUNNING, f"unplugd answers /metrics with status {status}", "journalctl -u unplugd -n 20")
    metrics = samples(text.decode("utf-8", "replace"))
    domains = control.domains()

    def total(name: str, **labels: str) -> int:
        wanted = labels.items()
        return int(sum(value for have, value in metrics.get(name, ()) if wanted <= have.items()))

    waiting = ""
    if ready != 200:
        waiting = said.decode("utf-8", "replace").strip()
        waiting = waiting.removeprefix("unplugd is not ready, it waits for ").removesuffix(".")
    build = metrics.get("unplugd_build_info") or [({}, 1.0)]
    return {
        "running": True,
        "ready": ready == 200,
        "waiting_for": waiting,
        "version": build[0][0].get("version", ""),
        "pid": pid,
        "control_socket": control.path,
        "xenstore_up": bool(total("unplugd_xenstore_up")),
        "xenstore_reconnects": total("unplugd_xenstore_reconnects_total"),
        "domains": len(domains),
        "connections": total("unplugd_connections"),
        "ioreqs": total("unplugd_ioreqs_total"),
        "blacklist_entries": total("unplugd_blacklist_entries"),
        "fallback_verdicts": total("unplugd_blacklist_lookups_total", result="fallback"),
        "blacklisted": [domain["domid"] for domain in domains if domain["blacklisted"]],
        "throttled": [domain["domid"] for domain in domains if domain["log"]["throttled"]],
        "dropped_lines": {
            reason: sum(domain["log"]["dropped_lines"].get(reason, 0) for domain in domains)
            for reason in ("rate-limit", "sink")
        },
        "protocol_errors": total("unplugd_protocol_errors_total"),
        "denied_connections": total("unplugd_denied_connections_total"),
    }


def status(options: Namespace) -> int:
    """`unplugctl status`."""
    try:
        found = gather(Control(options.socket))
    except Failure as failure:
        if not options.json:
            raise
        show.print_json({"running": False, "ready": False, "problem": failure.problem,
                         "control_socket": options.socket})
        return failure.status
    if options.json:
        show.print_json(found)
    else:
        for line in lines(found):
            print(line)
    return OK if found["ready"] else NO


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    process = f"process {found['pid']}" if found["pid"] else "process not to be seen from here"
    state = show.paint("ready", show.GREEN) if found["ready"] else show.paint(
        f"not ready: it waits for {show.safe(found['waiting_for'])}", show.RED)
    up = "connected" if found["xenstore_up"] else show.paint("not connected", show.RED)
    dropped = found["dropped_lines"]
    shown = [
        f"unplugd {show.safe(found['version'])} runs ({process}), {state}",
        f"  xenstore     {up}, {show.plural(found['xenstore_reconnects'], 'reconnect')}",
        (f"  guests       {show.plural(found['domains'], 'domain')},"
        f" {show.plural(found['connections'], 'device model connection')}, {found['ioreqs']} accesses served"),
        (f"  blacklist    {show.plural(found['blacklist_entries'], 'build')} in xenstore;"
        f" blacklisted guests: {ids(found['blacklisted'])}"),
        (f"  guest logs   throttled guests: {ids(found['throttled'])}; lines dropped: {dropped['rate-limit']} by the"
        f" rate limit, {dropped['sink']} because the sink did not take them"),
    ]
    notes = [
        (found["fallback_verdicts"], "verdict", "given without xenstored's answer", "journalctl -u unplugd"),
        (found["protocol_errors"], "connection", "closed for a fault of the device model", "unplugctl events"),
        (found["denied_connections"], "connection", "denied", "unplugctl events"),
    ]
    shown += [show.paint(f"  note         {show.plural(count, what)} {how}; see: {see}", show.YELLOW)
              for count, what, how, see in notes if count]
    return shown


def ids(domids: list[int]) -> str:
    """Some domids for people."""
    if not domids:
        return "none"
    return ", ".join(str(domid) for domid in domids[:10]) + (", ..." if len(domids) > 10 else "")
