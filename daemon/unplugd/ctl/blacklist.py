"""`unplugctl blacklist`: which driver builds must not be used, in xenstore and in configuration.

unplugctl reads and writes xenstore itself, so these commands work while unplugd is down. xenstore loses its content
when dom0 reboots, so `--persist` also writes conf.d and makes a running unplugd reload.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unplugd.config.load import Config, load
from unplugd.core.blacklist import LAST_BUILD, ROOT, build_number, node
from unplugd.core.registry import Registry
from unplugd.ctl import persist, show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import DECLINED, FAILED, NO, NOT_FOUND, OK, USAGE, Failure
from unplugd.ctl.store import add_node, read_blacklist, read_node, remove_node, with_store
from unplugd.errors import ConfigError
from unplugd.xenstore.store import Store

if TYPE_CHECKING:
    from argparse import Namespace

HEADS = ("Product", "Build", "Where", "Guests", "Reason")

RELOAD_PATIENCE = 5.0
"""Seconds that a running unplugd has to put a new entry into xenstore, before unplugctl does it."""

LINUX_BUILD = 1
_DOTTED = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def _path(options: Namespace) -> Path | None:
    return Path(options.config) if options.config else None


def _load(options: Namespace) -> Config:
    try:
        return load(_path(options))
    except ConfigError as error:
        raise Failure(USAGE, str(error), "unplugctl config check") from None


def parse_build(text: str) -> int:
    """A build number: decimal, 0x..., or XENBUS's three numbers (9.0.4 is 0x090004). Raises Failure."""
    dotted = _DOTTED.fullmatch(text)
    try:
        if dotted:
            major, minor, micro = (int(part) for part in dotted.groups())
            if major > 0xFFFF or minor > 0xFF or micro > 0xFF:
                raise ValueError
            number = major << 16 | minor << 8 | micro
        else:
            hexadecimal = text[:2].lower() == "0x"
            number = int(text, 16 if hexadecimal else 10) if text.isascii() and text.isalnum() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= LAST_BUILD:
        raise Failure(USAGE, f"{show.safe(text)} is no build number",
                      f"a number from 0 to {LAST_BUILD}, 0x..., or three numbers as 9.0.4")
    return number


def parse_product(text: str, registry: Registry) -> str:
    """The name of a product that was given by name or number. Raises Failure."""
    if text in registry.numbers:
        return text
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    name = registry.name(number)
    if name is None:
        raise Failure(USAGE, f"{show.safe(text)} is not a product that unplugd knows",
                      "products: " + ", ".join(f"{name} ({number})" for name, number in registry.numbers.items())
                      + "\nanother one gets a name in configuration: [products]")
    return name


def _running(options: Namespace) -> list[dict[str, Any]] | None:
    """The domains that unplugd serves; None where it does not run."""
    try:
        return Control(options.socket).domains()
    except Failure:
        return None


def _driven(domains: list[dict[str, Any]] | None, product: str, first: int, last: int) -> list[dict[str, Any]]:
    """The running guests whose driver announced a build of this range."""
    return [domain for domain in domains or () if domain["product_name"] == product and domain["build"] is not None
            and first <= domain["build"] <= last]


def _names(domains: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{show.name(domain)} ({domain['domid']})" for domain in domains[:8])
    return shown + (f" and {len(domains) - 8} more" if len(domains) > 8 else "")


# --- list


def list_entries(options: Namespace) -> int:
    """`unplugctl blacklist list`."""
    config = _load(options)
    registry = Registry(config.products)
    in_xenstore = None
    if config.xenstore.backend != "embedded":
        in_xenstore = with_store(config.xenstore, read_blacklist)
    domains = _running(options)
    rows = gather(in_xenstore, persist.configured(_path(options)), registry, domains)
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
              "?" if row["guests"] is None else str(len(row["guests"])), show.safe(row["reason"]) or "-")
             for row in rows]
    for line in show.table(HEADS, cells, right=(3,)):
        print(line)
    for row in rows:
        if row["problem"]:
            print(show.paint(f"{show.safe(row['product'])} {_span(row)}: {row['problem']}", show.YELLOW))
    return OK


def gather(in_xenstore: dict[tuple[str, str], str] | None, configured: list[persist.ConfiguredEntry],
           registry: Registry, domains: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """All blacklisted builds, as rows with the keys of --json. `in_xenstore` is None if there is no xenstore."""
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}

    def row(product: str, first: int, last: int) -> dict[str, Any]:
        return rows.setdefault((product, first, last), {
            "product": product, "from": first, "to": last, "xenstore": False, "files": [], "reason": "",
            "guests": None if domains is None else [one["domid"] for one in _driven(domains, product, first, last)],
            "problem": "",
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
        one = row(entry.product, entry.first, entry.last)
        one["files"].append(str(entry.file))
        one["reason"] = one["reason"] or entry.reason
        if not entry.is_range and not one["xenstore"] and node(entry.product, entry.first) and in_xenstore is not None:
            one["problem"] = "configured, but not in xenstore: unplugd does not run, or has not been reloaded"
    return [rows[key] for key in sorted(rows)]


def _span(row: dict[str, Any]) -> str:
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}-{row['to']}"


def _where(row: dict[str, Any]) -> str:
    return "+".join([*(["xenstore"] if row["xenstore"] else []), *(["configuration"] if row["files"] else [])])


# --- check


def check(options: Namespace) -> int:
    """`unplugctl blacklist check PRODUCT BUILD`."""
    config = _load(options)
    product = parse_product(options.product, Registry(config.products))
    build = parse_build(options.build)
    path = node(product, build)
    reason = None
    if path is not None and config.xenstore.backend != "embedded":
        reason = with_store(config.xenstore, lambda store: read_node(store, path))
    holders = [one for one in persist.configured(_path(options))
               if one.product == product and one.first <= build <= one.last]
    domains = _driven(_running(options), product, build, build)
    blacklisted = reason is not None or bool(holders)
    why = [f"xenstore node {path}" + (f": {show.safe(reason)}" if reason else "")] if reason is not None else []
    why += [f"{one.file}" + (f", range {one.first}-{one.last}" if one.is_range else "")
            + (f": {show.safe(one.reason)}" if one.reason else "") for one in holders]
    if options.json:
        show.print_json({
            "product": product, "build": build, "blacklisted": blacklisted, "xenstore": reason is not None,
            "files": [str(one.file) for one in holders],
            "reason": reason or next((one.reason for one in holders if one.reason), ""),
            "guests": [domain["domid"] for domain in domains],
        })
        return NO if blacklisted else OK
    state = show.paint("BLACKLISTED", show.RED) if blacklisted else show.paint("not blacklisted", show.GREEN)
    print(f"{product} build {build}: {state}")
    for line in why:
        print(f"  by {line}")
    if domains:
        print(f"  running guests with this driver: {_names(domains)}")
    return NO if blacklisted else OK


# --- add, remove


def add(options: Namespace) -> int:
    """`unplugctl blacklist add PRODUCT BUILD`."""
    config = _load(options)
    product = parse_product(options.product, Registry(config.products))
    build = parse_build(options.build)
    reason = _text(options.reason or "")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in reason):
        raise Failure(USAGE, "a reason is one line without control characters")
    path = node(product, build)
    embedded = config.xenstore.backend == "embedded"
    if not options.persist and (path is None or embedded):
        why = ('xenstore.backend is "embedded": there is no xenstore to write to' if embedded
               else f"a path in xenstore cannot hold the name {product}")
        raise Failure(USAGE, why, "unplugctl blacklist add --persist  writes it into configuration instead")
    _confirm_linux(options, product, build)
    file = persist.add(_path(options), product, build, reason) if options.persist else None
    told = options.persist and _reload(options)
    written = False
    if path is not None and not embedded:
        try:
            written = with_store(config.xenstore, lambda store: _ensure(store, path, reason, wait=bool(told)))
        except Failure as failure:
            if options.persist:
                raise _half(failure, f"{product} build {build} is kept in {file or 'the configuration already'}, but it"
                                     " is not in xenstore", "unplugd writes it there when it starts and when it is"
                                     " connected") from None
            raise
    domains = _running(options)
    hit = _driven(domains, product, build, build)
    if options.json:
        show.print_json({"product": product, "build": build, "xenstore": path is not None and not embedded,
                         "file": str(file) if file else None, "reloaded": bool(told),
                         "guests": None if domains is None else [domain["domid"] for domain in hit]})
        return OK
    print(f"{product} build {build} is blacklisted" + ("" if written or file else ", as it was before"))
    if file:
        print(f"  kept in {file}")
        if not told:
            print("  unplugd does not run: it reads that when it starts")
    elif options.persist:
        print("  configuration had it already")
    elif path is not None:
        print(f"  in xenstore only, until dom0 reboots: {path}   (--persist keeps it)")
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
    config = _load(options)
    product = parse_product(options.product, Registry(config.products))
    build = parse_build(options.build)
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
