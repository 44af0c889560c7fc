"""`unplugctl blacklist impact`: which running guests the blacklist would hit if it were enforced, and what that means.

It is worked out here, from configuration files, xenstore and what the running guests have announced; nothing changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unplugd.config.load import Config, load
from unplugd.core.blacklist import Configured, Hit, build_number, for_guest, node, strictest
from unplugd.core.families import effect, family_of, predicted
from unplugd.core.guestrules import first_match, stance
from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import NO, OK, USAGE, Failure
from unplugd.ctl.guests import SHOWN, driver, judged
from unplugd.ctl.store import read_blacklist, with_store
from unplugd.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace

HEADS = ("Name", "ID", "Driver", "Build", "Now", "Would be", "Rule")

def impact(options: Namespace) -> int:
    """`unplugctl blacklist impact`."""
    path = Path(options.config) if options.config else None
    candidate = Path(options.file) if options.file else None
    try:
        now = load(path)
        wanted = now if candidate is None else load(path, candidate)
    except ConfigError as error:
        raise Failure(USAGE, show.safe(str(error)), "unplugctl config check") from None
    domains = Control(options.socket).domains()
    rows = gather(domains, wanted, nodes(now, wanted))
    announced = sum(domain["build"] is not None for domain in domains)
    if options.json:
        show.print_json({"guests": rows, "running": len(domains), "announced": announced})
    else:
        for line in lines(rows, announced, len(domains)):
            print(line)
    return NO if any(row["action"] != "report" for row in rows) else OK


def nodes(now: Config, wanted: Config) -> dict[str, str]:
    """The nodes that xenstore would have: those that it has, without what configuration no longer wants there."""
    old, new = (Configured(one.blacklist.entries, one.blacklist.ranges, one.blacklist.action).nodes
                for one in (now, wanted))
    there: dict[str, str] = {}
    if now.xenstore.backend != "embedded":
        for (product, name), reason in with_store(now.xenstore, read_blacklist).items():
            build = build_number(name)
            path = None if build is None else node(product, build)
            if path is not None and (path not in old or path in new):
                there[path] = reason
    return {**new, **there}


def gather(domains: list[dict[str, Any]], config: Config, in_xenstore: dict[str, str]) -> list[dict[str, Any]]:
    """The guests that are hit, under the keys of --json. `blacklist.mode` counts as "enforce"."""
    blacklist = config.blacklist
    configured = Configured(blacklist.entries, blacklist.ranges, blacklist.action)
    rows = []
    for domain in domains:
        hit = _decide(domain, config, configured, in_xenstore)
        if hit is not None:
            family = family_of(domain["product"])
            rows.append({
                "domid": domain["domid"], "uuid": domain["uuid"], "name": domain["name"], "product": domain["product"],
                "product_name": domain["product_name"], "build": domain["build"], "verdict": judged(domain),
                "action": hit.action.name.lower(), "would_be": predicted(hit.action, family), "rule": hit.rule,
                "reason": hit.reason, "family": None if family is None else family.name,
                "effect": effect(hit.action, family),
            })
    return rows


def _decide(domain: dict[str, Any], config: Config, configured: Configured, in_xenstore: dict[str, str]) -> Hit | None:
    product, build, name, uuid = (domain[key] for key in ("product_name", "build", "name", "uuid"))
    if product is None or build is None:
        return None
    path = node(product, build)
    found = configured.node_hit(product, build, in_xenstore[path]) if path in in_xenstore else None
    hit = strictest(configured.decide(product, build, name, uuid), found)
    return for_guest(hit, stance(first_match(config.guests, name, uuid), "enforce"))


def lines(rows: list[dict[str, Any]], announced: int, running: int) -> list[str]:
    """The same for people."""
    known = f"{show.plural(running, 'guest')} running, {announced} of them with a driver that announced itself"
    if not rows:
        return [f"No running guest would be hit ({known})."]
    cells = [(show.name(row), str(row["domid"]), show.cut(driver(row), 32), str(row["build"]),
              SHOWN.get(row["verdict"] or "", "-"), row["would_be"], show.safe(row["rule"])) for row in rows]
    said = [f"{show.plural(len(rows), 'guest')} would be hit ({known}):", "",
            *show.table(HEADS, cells, right=(1, 3)), ""]
    meant = dict.fromkeys((row["family"] or driver(row), row["action"], row["effect"]) for row in rows)
    return said + [f"{show.safe(family)}, {action}: {what}" for family, action, what in meant]
