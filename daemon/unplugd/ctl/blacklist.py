"""`unplugctl blacklist`: which driver builds must not be used, in xenstore and in configuration.

unplugctl reads and writes xenstore itself, so these commands work while unplugd is down. xenstore loses its content
when dom0 reboots, so `--persist` also writes conf.d and makes a running unplugd reload.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unplugd.config.load import Config, load
from unplugd.core.blacklist import ROOT, build_number, node, said
from unplugd.core.families import effect, family_of
from unplugd.core.guestrules import Patterns
from unplugd.core.protocol import ACTIONS, Action
from unplugd.core.registry import Registry
from unplugd.ctl import persist, show
from unplugd.ctl.arguments import computed, parse_build, parse_product
from unplugd.ctl.control import Control
from unplugd.ctl.failure import DECLINED, FAILED, NO, NOT_FOUND, OK, USAGE, Failure
from unplugd.ctl.store import add_node, read_blacklist, read_node, remove_node, with_store
from unplugd.errors import ConfigError
from unplugd.xenstore.store import Store

if TYPE_CHECKING:
    from argparse import Namespace

HEADS = ("Product", "Build", "Where", "Guests", "Action", "For", "Reason")

RELOAD_PATIENCE = 5.0
"""Seconds that a running unplugd has to put a new entry into xenstore, before unplugctl does it."""

LINUX_BUILD = 1


def _path(options: Namespace) -> Path | None:
    return Path(options.config) if options.config else None


def load_config(options: Namespace) -> Config:
    """The configuration of the command line. Raises Failure."""
    try:
        return load(_path(options))
    except ConfigError as error:
        raise Failure(USAGE, str(error), "unplugctl config check") from None


def _running(options: Namespace) -> list[dict[str, Any]] | None:
    """The domains that unplugd serves; None where it does not run."""
    try:
        return Control(options.socket).domains()
    except Failure:
        return None


def _driven(domains: list[dict[str, Any]] | None, product: str, first: int, last: int,
            guests: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """The running guests whose driver announced a build of this range, of those that patterns mean."""
    meant = None if guests is None else Patterns(*guests)
    return [domain for domain in domains or () if domain["product_name"] == product and domain["build"] is not None
            and first <= domain["build"] <= last
            and (meant is None or meant.match(domain["name"], domain["uuid"]))]


def _names(domains: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{show.name(domain)} ({domain['domid']})" for domain in domains[:8])
    return shown + (f" and {len(domains) - 8} more" if len(domains) > 8 else "")


# --- list


def list_entries(options: Namespace) -> int:
    """`unplugctl blacklist list`."""
    config = load_config(options)
    registry = Registry(config.products)
    in_xenstore = None
    if config.xenstore.backend != "embedded":
        in_xenstore = with_store(config.xenstore, read_blacklist)
    domains = _running(options)
    rows = gather(in_xenstore, persist.configured(_path(options)), registry, domains, config.blacklist.action)
    malformed = sorted(f"{ROOT}/{product}/{build}" for product, build in in_xenstore or {}
                       if build_number(build) is None)
    if options.json:
        show.print_json({"entries": rows} | ({"malformed": malformed} if malformed else {}))
        return OK
    for path in malformed:
        print(f"unplugctl: {show.safe(path)} blacklists nothing: its name is no decimal build number", file=sys.stderr)
    if not rows:
        print("No driver build is blacklisted.")
        return OK
    cells = [(show.cut(show.safe(row["product"]), 32), _span(row), _where(row),
              "?" if row["guests"] is None else str(len(row["guests"])), row["action"],
              "all" if row["for"] is None else show.cut(show.safe(", ".join(row["for"])), 32),
              show.safe(row["reason"]) or "-") for row in rows]
    for line in show.table(HEADS, cells, right=(3,)):
        print(line)
    if config.blacklist.mode == "observe":
        print(show.paint('blacklist.mode is "observe": every action is report', show.YELLOW))
    for row in rows:
        if row["problem"]:
            print(show.paint(f"{show.safe(row['product'])} {_span(row)}: {row['problem']}", show.YELLOW))
    return OK


def gather(in_xenstore: dict[tuple[str, str], str] | None, configured: list[persist.ConfiguredEntry],
           registry: Registry, domains: list[dict[str, Any]] | None,
           default: Action = Action.REFUSE) -> list[dict[str, Any]]:
    """All blacklisted builds, as rows with the keys of --json. `in_xenstore` is None if there is no xenstore.

    `default` is `blacklist.action`.
    """
    rows: dict[tuple[str, int, int, Action, tuple[str, ...]], dict[str, Any]] = {}

    def row(product: str, first: int, last: int, action: Action = default,
            guests: tuple[str, ...] | None = None) -> dict[str, Any]:
        hit = None if domains is None else [one["domid"] for one in _driven(domains, product, first, last, guests)]
        return rows.setdefault((product, first, last, action, guests or ()), {
            "product": product, "from": first, "to": last, "action": action.name.lower(),
            "for": None if guests is None else list(guests), "xenstore": False, "files": [], "reason": "",
            "guests": hit, "problem": "",
        })

    for (product, build), reason in (in_xenstore or {}).items():
        number = build_number(build)
        if number is None:
            continue        # no driver can announce it
        one = row(product, number, number)
        one["xenstore"], one["reason"] = True, reason
        if product not in registry.numbers:
            one["problem"] = "no driver has this product name, so it blacklists nothing"
    for entry in configured:
        one = row(entry.product, entry.first, entry.last, entry.action or default, entry.guests)
        one["files"].append(str(entry.file))
        one["reason"] = one["reason"] or entry.reason
        belongs = not entry.is_range and entry.guests is None and entry.action in (None, default)
        if belongs and not one["xenstore"] and node(entry.product, entry.first) and in_xenstore is not None:
            one["problem"] = "configured, but not in xenstore: unplugd does not run, or has not been reloaded"
    return [rows[key] for key in sorted(rows)]


def _span(row: dict[str, Any]) -> str:
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}-{row['to']}"


def _where(row: dict[str, Any]) -> str:
    return "+".join([*(["xenstore"] if row["xenstore"] else []), *(["configuration"] if row["files"] else [])])


# --- check


def check(options: Namespace) -> int:
    """`unplugctl blacklist check PRODUCT BUILD`."""
    config = load_config(options)
    registry = Registry(config.products)
    product = parse_product(options.product, registry)
    build = parse_build(options.build, registry.number(product))
    default = config.blacklist.action
    path = node(product, build)
    reason = None
    if path is not None and config.xenstore.backend != "embedded":
        reason = with_store(config.xenstore, lambda store: read_node(store, path))
    holders = [one for one in persist.configured(_path(options))
               if one.product == product and one.first <= build <= one.last]
    domains = _driven(_running(options), product, build, build)
    blacklisted = reason is not None or bool(holders)
    actions = [*([default] if reason is not None else []), *(one.action or default for one in holders)]
    why = [f"xenstore node {path}" + (f": {show.safe(reason)}" if reason else "") + said(default, None)
           ] if reason is not None else []
    why += [f"{one.file}" + (f", range {one.first}-{one.last}" if one.is_range else "")
            + (f": {show.safe(one.reason)}" if one.reason else "")
            + show.safe(said(one.action or default, None if one.guests is None else Patterns(*one.guests)))
            for one in holders]
    family = family_of(registry.number(product))
    if options.json:
        show.print_json({
            "product": product, "build": build, "blacklisted": blacklisted, "xenstore": reason is not None,
            "files": [str(one.file) for one in holders],
            "reason": reason or next((one.reason for one in holders if one.reason), ""),
            "action": max(actions).name.lower() if actions else None, "mode": config.blacklist.mode,
            "family": None if family is None else family.name,
            "guests": [domain["domid"] for domain in domains],
        })
        return NO if blacklisted else OK
    state = show.paint("BLACKLISTED", show.RED) if blacklisted else show.paint("not blacklisted", show.GREEN)
    print(f"{product} build {build}: {state}")
    if note := computed(options.build, build):
        print(f"  {note}")
    for line in why:
        print(f"  by {line}")
    if blacklisted and config.blacklist.mode == "observe":
        print('  blacklist.mode is "observe": it is only reported')
    for action in sorted(set(actions)):
        print(f"  {action.name.lower()}: {effect(action, family)}")
    if domains:
        print(f"  running guests with this driver: {_names(domains)}")
    return NO if blacklisted else OK


# --- add, remove


def add(options: Namespace) -> int:
    """`unplugctl blacklist add PRODUCT BUILD`."""
    config = load_config(options)
    registry = Registry(config.products)
    product = parse_product(options.product, registry)
    build = parse_build(options.build, registry.number(product))
    reason = _text(options.reason or "")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in reason):
        raise Failure(USAGE, "a reason is one line without control characters")
    path = _node_for(options, config, product, build)
    _confirm_linux(options, product, build)
    file = None
    if options.persist:
        file = persist.add(_path(options), product, build, reason, options.action, options.guests)
    told = options.persist and _reload(options)
    written = False
    if path is not None:
        try:
            written = with_store(config.xenstore, lambda store: _ensure(store, path, reason, wait=bool(told)))
        except Failure as failure:
            if options.persist:
                raise _half(failure, f"{product} build {build} is kept in {file or 'the configuration already'}, but it"
                                     " is not in xenstore", "unplugd writes it there when it starts and when it is"
                                     " connected") from None
            raise
    domains = _running(options)
    hit = _driven(domains, product, build, build, tuple(options.guests) if options.guests else None)
    if options.json:
        show.print_json({"product": product, "build": build, "xenstore": path is not None,
                         "file": str(file) if file else None, "reloaded": bool(told),
                         "guests": None if domains is None else [domain["domid"] for domain in hit]})
        return OK
    print(f"{product} build {build} is blacklisted" + ("" if written or file else ", as it was before"))
    if note := computed(options.build, build):
        print(f"  {note}")
    if file:
        print(f"  kept in {file}")
        if not told:
            print("  unplugd does not run: it reads that when it starts")
    elif options.persist:
        print("  configuration had it already")
    elif path is not None:
        print(f"  in xenstore only, until dom0 reboots: {path}   (--persist keeps it)")
    action = ACTIONS[options.action] if options.action else config.blacklist.action
    print(f"  {action.name.lower()}: {effect(action, family_of(registry.number(product)))}")
    if config.blacklist.mode == "observe":
        print('  blacklist.mode is "observe": it is only reported')
    if hit:
        print(f"  running guests with this driver: {_names(hit)}")
        print("  their verdicts change when their drivers announce themselves again: at the next start of the guest")
    elif domains is not None:
        print("  no running guest has this driver")
    return OK


def _text(argument: str) -> str:
    """An argument as text: UTF-8 where the locale has no such characters. Raises Failure."""
    if argument.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in argument):
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(USAGE, f"{show.safe(argument)} is not text, neither in this locale nor as UTF-8") from None
def _node_for(options: Namespace, config: Config, product: str, build: int) -> str | None:
    """The node of xenstore that a new entry gets; None where it is configuration's alone. Raises Failure."""
    if options.guests or options.action not in (None, config.blacklist.action.name.lower()):
        path, why = None, "xenstore cannot express --guests, or another action than blacklist.action"
    elif config.xenstore.backend == "embedded":
        path, why = None, 'xenstore.backend is "embedded": there is no xenstore to write to'
    else:
        path, why = node(product, build), f"a path in xenstore cannot hold the name {product}"
    if path is None and not options.persist:
        raise Failure(USAGE, why, "unplugctl blacklist add --persist  writes it into configuration instead")
    return path


async def _ensure(store: Store, path: str, reason: str, *, wait: bool) -> bool:
    """Ensure that the node exists; returns whether it is new. A running unplugd that reloads writes it itself: then the
    node is its own, and a reload without the entry removes it."""
    if await read_node(store, path) is not None:
        return False
    for _ in range(int(RELOAD_PATIENCE / 0.1) if wait else 0):
        if await read_node(store, path) is not None:
            return True
        await asyncio.sleep(0.1)
    await add_node(store, path, reason)
    return True


def remove(options: Namespace) -> int:
    """`unplugctl blacklist remove PRODUCT BUILD`."""
    config = load_config(options)
    registry = Registry(config.products)
    product = parse_product(options.product, registry)
    build = parse_build(options.build, registry.number(product))
    path = node(product, build)
    removed: list[Path] = []
    left = [one.file for one in persist.configured(_path(options))
            if not one.is_range and (one.product, one.first) == (product, build)]
    told = False
    if options.persist:
        removed, left = persist.remove(_path(options), product, build)
        told = bool(removed) and _reload(options)
    was_there = False
    if path is not None and config.xenstore.backend != "embedded":
        try:
            was_there = with_store(config.xenstore, lambda store: remove_node(store, path))
        except Failure as failure:
            if removed:
                raise _half(failure, f"{product} build {build} is taken out of {', '.join(map(str, removed))}, but"
                                     " perhaps not of xenstore", "give the command again when xenstored runs") from None
            raise
    ranges = [one for one in persist.configured(_path(options))
              if one.is_range and one.product == product and one.first <= build <= one.last]
    if options.json:
        show.print_json({"product": product, "build": build, "removed": was_there or bool(removed),
                         "xenstore": was_there, "files": [str(file) for file in removed], "reloaded": told,
                         "left_in": [str(file) for file in left] + [str(one.file) for one in ranges]})
    elif was_there or removed:
        print(f"{product} build {build} is no longer blacklisted" + ("" if not left and not ranges else ", but:"))
        for file in removed:
            print(f"  taken out of {file}")
    for file in left:
        hint = "--persist takes it out there too" if not options.persist else "that file is yours to edit"
        print(f"unplugctl: {file} still has it: it comes back with the next reload ({hint})", file=sys.stderr)
    for one in ranges:
        print(f"unplugctl: {one.file} blacklists the range {one.first}-{one.last}: it still holds", file=sys.stderr)
    if not was_there and not removed:
        if left or ranges:
            return NOT_FOUND
        raise Failure(NOT_FOUND, f"{product} build {build} was not blacklisted", "unplugctl blacklist list")
    return OK


def _half(failure: Failure, done: str, hint: str) -> Failure:
    """The failure of a command of which a part is done."""
    return Failure(failure.status, f"{show.safe(done)}: {failure.problem}", f"{hint}\n{failure.hint}")


def _confirm_linux(options: Namespace, product: str, build: int) -> None:
    if (product, build) != ("linux", LINUX_BUILD) or options.yes:
        return
    warning = ("Every Linux kernel announces build 1, whatever its version:\n"
               "this entry takes the PV drivers from every Linux guest that starts.")
    if not sys.stdin.isatty():
        raise Failure(DECLINED, warning, "if that is what you want: --yes")
    print(warning)
    try:
        answer = input("Blacklist every Linux? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Failure(DECLINED, "nothing was changed")


def _reload(options: Namespace) -> bool:
    """Make a running unplugd reload its configuration; False if none runs. Raises Failure."""
    try:
        pid, _ = Control(options.socket).peer()
    except Failure:
        return False
    if not pid:
        raise Failure(FAILED, "the configuration was changed, but unplugd's process is not visible here",
                      "send it SIGHUP, for example: systemctl reload unplugd")
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise Failure(FAILED, f"the configuration was changed, but this user may not signal process {pid}",
                      "systemctl reload unplugd") from None
    return True
