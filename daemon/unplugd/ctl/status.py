"""`unplugctl status`: whether unplugd runs and works, in ten lines.

It shows /api/v1/status and counts the guests. It also checks whether the configuration files have changed since unplugd
read them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from unplugd.config.files import DEFAULT_DROP_INS, DEFAULT_FILE, paths
from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import NO, NOT_RUNNING, OK, Failure
from unplugd.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace


def gather(control: Control) -> dict[str, Any]:
    """All values, with their JSON keys. Raises Failure."""
    said = control.json("/api/v1/status")
    if said is None:
        raise Failure(NOT_RUNNING, "the running unplugd is older than this unplugctl: it has no /api/v1/status",
                      "systemctl restart unplugd  (guests do not notice)")
    pid, _ = control.peer()
    domains = control.domains()
    configuration = said["configuration"]
    return {
        "running": True,
        "ready": said["ready"],
        "waiting_for": said["waiting_for"],
        "problem": said["problem"],
        "version": said["version"],
        "pid": pid,
        "started": said["started"],
        "control_socket": control.path,
        "configuration": {**configuration, "changed": changed(configuration)},
        "xenstore_up": said["xenstore"]["connected"],
        "xenstore_reconnects": said["xenstore"]["reconnects"],
        "domains": len(domains),
        "connections": said["connections"],
        "ioreqs": said["ioreqs"],
        "blacklist_entries": said["blacklist"]["entries"],
        "fallback_verdicts": said["blacklist"]["lookups"]["fallback"],
        "blacklisted": [domain["domid"] for domain in domains if domain["blacklisted"]],
        "throttled": [domain["domid"] for domain in domains if domain["log"]["throttled"]],
        "dropped_lines": {
            reason: sum(domain["log"]["dropped_lines"].get(reason, 0) for domain in domains)
            for reason in ("rate-limit", "sink")
        },
        "protocol_errors": sum(said["protocol_errors"].values()),
        "denied_connections": said["denied_connections"],
    }


def changed(configuration: dict[str, Any]) -> list[str]:
    """Configuration files that were added, written or removed after unplugd had read them."""
    first = next(iter(configuration["files"]), DEFAULT_FILE)
    # without unplugd.toml, the first file is the first one in conf.d
    usual = first == DEFAULT_FILE or os.path.dirname(first) == DEFAULT_DROP_INS
    try:
        found = [path for path in paths(None if usual else first) if path not in configuration["files"]]
    except ConfigError:     # not to be seen from here
        found = []
    for file in configuration["files"]:
        try:
            if os.stat(file).st_mtime > configuration["since"]:
                found.append(file)
        except FileNotFoundError:
            found.append(file)
        except OSError:     # not visible for this process
            continue
    return found


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
    """The same as text."""
    process = f"process {found['pid']}" if found["pid"] else "its process is not visible"
    state = show.paint("ready", show.GREEN) if found["ready"] else show.paint(
        f"not ready: it waits for {show.safe(found['waiting_for'])}", show.RED)
    up = "connected" if found["xenstore_up"] else show.paint("not connected", show.RED)
    dropped, configuration = found["dropped_lines"], found["configuration"]
    files = ", ".join(show.safe(file) for file in configuration["files"]) or "no file, the defaults"
    shown = [
        (f"unplugd {show.safe(found['version'])} runs ({process}, for {lasting(time.time() - found['started'])}),"
         f" {state}"),
        f"  configuration  {files}; read {show.moment(configuration['since'])}",
        f"  xenstore       {up}, {show.plural(found['xenstore_reconnects'], 'reconnect')}",
        (f"  guests         {show.plural(found['domains'], 'domain')},"
         f" {show.plural(found['connections'], 'device model connection')}, {found['ioreqs']} accesses served"),
        (f"  blacklist      {show.plural(found['blacklist_entries'], 'build')} in xenstore;"
         f" blacklisted guests: {ids(found['blacklisted'])}"),
        (f"  guest logs     throttled guests: {ids(found['throttled'])}; lines dropped: {dropped['rate-limit']} by the"
         f" rate limit, {dropped['sink']} because the sink did not take them"),
    ]
    return shown + [show.paint(f"  note           {note}", show.YELLOW) for note in notes(found)]


def notes(found: dict[str, Any]) -> list[str]:
    """Problems, and what to do about them."""
    configuration = found["configuration"]
    refused = configuration["refused"]
    said = []
    if found["problem"]:
        said.append(f"guest logs wait: {show.safe(found['problem'])}")
    if refused:
        said.append(f"the reload at {show.moment(refused['time'])} was refused, the previous configuration stays in"
                    f" effect: {show.safe(refused['problem'])}")
    elif configuration["changed"]:
        said.append(", ".join(show.safe(file) for file in configuration["changed"])
                    + " changed since then; to use it: systemctl reload unplugd")
    counted = (
        (found["fallback_verdicts"], "verdict", "given without xenstored's answer", "events -k verdict-fallback"),
        (found["protocol_errors"], "connection", "closed for a fault of the device model", "events -k protocol-fault"),
        (found["denied_connections"], "connection", "denied", "events -k connection-denied"),
    )
    return said + [f"{show.plural(count, what)} {how}; see: unplugctl {see}"
                   for count, what, how, see in counted if count]


def lasting(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return show.plural(int(seconds // length), unit)
    return show.plural(max(0, int(seconds)), "second")


def ids(domids: list[int]) -> str:
    """Some domids as text."""
    if not domids:
        return "none"
    return ", ".join(str(domid) for domid in domids[:10]) + (", ..." if len(domids) > 10 else "")
