"""`unplugctl list` and `show`: the guests as a table, and one of them in words.

`show` is for somebody who has never heard of the protocol: it says what happened, what it means and what to do. While
unplugd does not answer, both show what it published in xenstore, say so, and end with the status of that.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from unplugd.core.escape import escape_text, utf8
from unplugd.core.families import effect, family_of, in_words
from unplugd.core.protocol import Action
from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import NOT_FOUND, OK, Failure, tell

if TYPE_CHECKING:
    from argparse import Namespace

HEADS = ("Name", "ID", "Driver", "Build", "Verdict", "Unplugged", "Log")

SHOWN = {"allowed": "allowed", "reported": "reported", "refused": "BLACKLISTED", "ignored": "IGNORED",
         "withheld": "WITHHELD"}
"""A verdict as `list` shows it."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether a DOMAIN on the command line is a uuid."""
    return _UUID.fullmatch(text.lower()) is not None


def find(domains: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The domain that DOMAIN means: a domid, else a uuid, else a name, as it is or as it is shown.

    Raises Failure; Ambiguous where several domains have this uuid or name.
    """
    number = wanted.lstrip("0")
    found = [domain for domain in domains if str(domain["domid"]) == number]
    if not found and is_uuid(wanted):
        found = [domain for domain in domains if domain["uuid"].lower() == wanted.lower()]
        if len(found) > 1:
            listed = ", ".join(f"{domain['domid']} ({show.name(domain)})" for domain in found)
            raise Ambiguous(f"{len(found)} domains have the uuid {show.safe(wanted)}: {listed}")
    if not found:
        found = [domain for domain in domains if wanted in _spellings(domain)]
        if len(found) > 1:
            listed = ", ".join(str(domain["domid"]) for domain in found)
            raise Ambiguous(f"{len(found)} domains are called {show.safe(wanted)}: {listed}")
    if not found:
        raise Failure(NOT_FOUND, f"no domain {show.safe(wanted)} is served by unplugd",
                      "unplugctl list  shows those that are; unplugctl log and events also know guests that are gone")
    return found[0]


class Ambiguous(Failure):
    """Several domains are what DOMAIN may mean; `problem` lists them."""

    def __init__(self, problem: str) -> None:
        super().__init__(NOT_FOUND, problem, "name one by its id")


def _spellings(domain: dict[str, Any]) -> set[str]:
    """A domain's name as it is, and as tables, records and text logs show it: what is shown can be pasted."""
    name = domain["name"]
    return {name, show.safe(name), show.name(domain), escape_text(utf8(name))}


def list_domains(options: Namespace) -> int:
    """`unplugctl list`."""
    domains, failure = ask(options)
    if options.domains:
        domains = [find(domains, wanted) for wanted in options.domains]
    if options.json:
        show.print_json({"domains": domains})
        return stale(failure)
    rows = [row(domain) for domain in domains]
    for line in show.table(HEADS, rows, right=(1, 3), colours=[colours(domain) for domain in domains]):
        print(line)
    return stale(failure)


def ask(options: Namespace) -> tuple[list[dict[str, Any]], Failure | None]:
    """All domains; with the reason why they are xenstore's, where unplugd does not answer. Raises Failure."""
    try:
        return Control(options.socket).domains(), None
    except Failure as failure:
        from unplugd.ctl import published

        return published.domains(options, failure), failure


def stale(failure: Failure | None) -> int:
    """The exit status; where unplugd did not answer, said aloud."""
    if failure is None:
        return OK
    sys.stdout.flush()
    tell(failure)
    print("  above is what it published in xenstore while it ran", file=sys.stderr)
    return failure.status


def row(domain: dict[str, Any]) -> tuple[str, ...]:
    """A domain's line of the table."""
    return (show.name(domain), str(domain["domid"]), show.cut(driver(domain), 32),
            "-" if domain["build"] is None else str(domain["build"]), verdict(domain),
            ",".join(domain["unplugged"]) or "-", log_state(domain))


def colours(domain: dict[str, Any]) -> tuple[str, ...]:
    """The colours of that line."""
    log = domain["log"]
    losing = log is not None and (log["throttled"] or any(log["dropped_lines"].values()))
    return ("", "", "", "", colour(domain), "", show.YELLOW if losing else "")


def colour(domain: dict[str, Any]) -> str:
    """The colour of a verdict."""
    return show.RED if domain["blacklisted"] else show.YELLOW if judged(domain) == "reported" else ""


def driver(domain: dict[str, Any]) -> str:
    """The PV driver, by name where it has one."""
    if domain["product"] is None:
        return "-"
    return show.safe(domain["product_name"]) if domain["product_name"] else f"product {domain['product']}"


def verdict(domain: dict[str, Any]) -> str:
    """What became of the driver; `-` while it has announced none."""
    return SHOWN.get(judged(domain) or "", "-")


def judged(domain: dict[str, Any]) -> str | None:
    """The verdict; of an unplugd that is older than this unplugctl, worked out from what it says."""
    if domain.get("verdict") is not None:
        return str(domain["verdict"])
    if domain["blacklisted"]:
        return "ignored" if domain["unplugged"] else "refused"
    return None if domain["build"] is None else "allowed"


def log_state(domain: dict[str, Any]) -> str:
    """How the guest's log does, in a word or three."""
    log = domain["log"]
    if log is None:
        return "?"
    dropped = sum(log["dropped_lines"].values())
    if log["throttled"]:
        return f"throttled, {dropped} dropped" if dropped else "throttled"
    if dropped:
        return f"{dropped} dropped"
    return show.plural(log["lines"], "line") if log["lines"] else "-"


# --- show


def show_domain(options: Namespace) -> int:
    """`unplugctl show DOMAIN`."""
    domains, failure = ask(options)
    domain = find(domains, options.domain)
    domid = domain["domid"]
    if failure is None:
        domain = Control(options.socket).json(f"/api/v1/domains/{domid}")
    if domain is None:
        raise Failure(NOT_FOUND, f"domain {domid} has just gone", "unplugctl list")
    if options.json:
        show.print_json(domain)
        return stale(failure)
    print(show.paint(f"{show.name(domain, 200)} (domain {domid}, uuid {show.safe(domain['uuid']) or 'not known yet'})",
                     show.BOLD))
    print()
    for line in summary(domain):
        print(f"  {line}".rstrip())
    print()
    for label, value in facts(domain):
        print(f"  {label:<14}{value}")
    print()
    for line in history(domain):
        print(line)
    return stale(failure)


def summary(domain: dict[str, Any]) -> list[str]:
    """What it all means, and what to do, in a sentence or a few."""
    told = driver(domain) + ("" if domain["build"] is None else f" build {domain['build']}")
    if domain["blacklisted"]:
        because = f" ({show.safe(domain['blacklist_reason'])})" if domain["blacklist_reason"] else ""
        lines = [
            "PV drivers are what makes disks and networks of a Xen guest fast; they are installed in the guest, and",
            "ask this host when they start whether they may. The build that is installed in this guest may not:",
            f"{told} is on this host's blacklist{because}.",
            "",
            *_refused(domain),
        ]
        listed = f"{show.safe(domain['product_name'] or domain['product'])} {domain['build']}"
        return [*lines,
                "To change that: install another build of the drivers in the guest, or take this one off the list,",
                f"  unplugctl blacklist check {listed}     who listed it, and why",
                f"  unplugctl blacklist remove {listed}    allow it again",
                "and restart the guest then: it keeps its verdict until it is reset."]
    if judged(domain) == "reported":
        because = f" ({show.safe(domain['blacklist_reason'])})" if domain["blacklist_reason"] else ""
        return [f"Its PV driver announced itself as {told}. It is on this host's blacklist{because}, but only",
                "reported: the guest was not told, and runs with it. What enforcing would do to it:",
                *_both(domain),
                "All guests that would be hit:  unplugctl blacklist impact"]
    if domain["build"] is not None:
        return [f"Its PV driver announced itself as {told} and is allowed."
                + ("" if domain["unplugged"] else " It has unplugged nothing yet.")]
    if domain["unplugged"]:
        return ["Its driver unplugged emulated devices without saying which driver it is, as those of the BSDs do:",
                "there is no build to blacklist."]
    if domain["connections"] == 0:
        return ["No device model is connected, so nothing that the guest does can be seen here.",
                "Is unplugd-attach running, or a device model that knows unplugd?  systemctl status unplugd-attach"]
    return ["No PV driver has announced itself: the guest is still starting, or it has none."]


def _refused(domain: dict[str, Any]) -> list[str]:
    """What a refused driver did, and what it got."""
    devices = " and ".join(domain["unplugged"])
    family = family_of(domain["product"])
    whose = "This driver" if family is None else f"A driver of this family ({family.name})"
    match judged(domain):
        case "ignored":
            return [f"It has unplugged the emulated {devices} all the same, and runs: this driver does not look at the",
                    f"answer. The action \"withhold\" would keep its emulated devices. {whose}, withheld:",
                    *_wrapped(effect(Action.WITHHOLD, family))]
        case "withheld":
            return ["It asked to have its emulated devices unplugged all the same, and got nothing: the action is",
                    f"\"withhold\". {whose}, withheld:", *_wrapped(effect(Action.WITHHOLD, family))]
    if domain["unplugged"]:
        return [f"It had the emulated {devices} unplugged before it was refused."]
    return ["The guest runs all the same, with the disks and network cards that QEMU emulates: slower."]


def _both(domain: dict[str, Any]) -> list[str]:
    family = family_of(domain["product"])
    return [line for action in (Action.REFUSE, Action.WITHHOLD)
            for line in _wrapped(f"{action.name.lower()}: {effect(action, family)}")]


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 100, initial_indent="  ", subsequent_indent="  ")


def facts(domain: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known, line by line."""
    product = "none" if domain["product"] is None else f"{driver(domain)} (product {domain['product']})"
    build = "" if domain["build"] is None else f", build {domain['build']}{dotted(domain)}"
    said = verdict(domain)
    if colour(domain):
        said = show.paint(said, colour(domain)) + (
            f": {show.safe(domain['blacklist_reason'])}" if domain["blacklist_reason"] else "")
    log = domain["log"]
    known = [
        ("Driver", product + build),
        ("Verdict", "nothing announced yet" if said == "-" else said),
        *([("Decided by", show.safe(domain["rule"]))] if domain.get("rule") else []),
        *([("Guest rule", show.safe(domain["guest_rule"]))] if domain.get("guest_rule") else []),
        ("Unplugged", ", ".join(domain["unplugged"]) or "nothing"),
    ]
    if log is None:
        return [*known, ("Log", f"unplugctl log {domain['domid']}")]
    limit = "none (log-throttling = 0)" if not log["limited"] else (
        f"{log['rate']:g} bytes a second, {log['burst']:g} at once, {log['balance']} left now"
        + (show.paint(", over it", show.YELLOW) if log["throttled"] else ""))
    dropped = ", ".join(
        f"{show.plural(lines, 'line')} ({show.size(log['dropped_bytes'].get(reason, 0))}) by {reason}"
        for reason, lines in sorted(log["dropped_lines"].items()) if lines)
    return [
        *known,
        ("Device model", show.plural(domain["connections"], "connection")),
        ("Log", (f"{show.plural(log['lines'], 'line')}, {show.size(log['bytes'])} since unplugd started"
                f"; read it: unplugctl log {domain['domid']}")),
        ("Log limit", limit),
        ("Dropped", dropped or "nothing"),
    ]


def dotted(domain: dict[str, Any]) -> str:
    """The versions that announce this build number, where its family numbers so."""
    words = in_words(domain["product"], domain["build"])
    return f" ({words})" if words else ""


def history(domain: dict[str, Any]) -> list[str]:
    """Which accesses came when; the journal's part where the daemon remembers none."""
    steps = domain.get("history")
    more = f"  what was recorded before: unplugctl events {domain['domid']}"
    if domain["log"] is None:       # unplugd was not asked
        return [more]
    if not steps:
        return ["  No access of its driver is remembered;", more]
    heads = show.paint("  What its driver did", show.BOLD)
    return [heads, *(f"    {show.moment(step['time'])}  {told(step)}{again(step)}" for step in steps), more]


def again(step: dict[str, Any]) -> str:
    """How often a step was repeated."""
    times = step.get("times", 1)
    return "" if times < 2 else f" ({times} times, last {show.moment(step['last_time'])})"


def told(step: dict[str, Any]) -> str:
    """A step of the history as a sentence."""
    match step["did"]:
        case "magic":
            blacklisted = step["answer"] == 0xD249
            return f"read the magic number: {step['answer']:#06x}, " + (
                "this driver is blacklisted" if blacklisted else "go on")
        case "version":
            return f"read the protocol version: {step['answer']}"
        case "product":
            return f"gave product number {step['product']}" if step["product"] else "took its product number back"
        case "build":
            because = f", {show.safe(step['reason'])}" if step["reason"] else ""
            by = _SOURCES.get(step["source"], show.safe(step["source"]))
            said = show.paint("blacklisted", show.RED) if step["blacklisted"] else (
                show.paint("on the blacklist, only reported", show.YELLOW) if step.get("reported") else "allowed")
            return f"gave build number {step['build']}: {said}" + (f" by {by}" if by else "") + because
        case "ignored-build":
            return f"gave build number {step['build']} without a product number: ignored"
        case "unplug":
            order = ", ".join(step["order"]) or "nothing"
            return f"asked to unplug (mask {step['mask']}): the device model was told to unplug {order}"
        case "reset":
            return "the platform device was reset: all before this no longer counts"
        case "restored":
            return "unplugd started anew and took the guest's state over"
    return show.safe(step["did"])


_SOURCES = {
    "xenstore": "xenstore",
    "configuration": "configuration",
    "mirror": "what xenstore had last (it did not answer in time)",
    "on-error": "blacklist.on_error (xenstore did not answer in time)",
    "unknown-product": "default: nobody has registered this product number",
}
