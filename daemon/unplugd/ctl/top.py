"""`unplugctl top`: log rates of the guests, live; `-b` prints tables, as xentop does.

The rates come from two requests to the daemon. On a terminal it uses the whole screen: q quits, the keys in KEYS sort.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from typing import TYPE_CHECKING, Any

from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import OK, USAGE, Failure
from unplugd.ctl.guests import driver, verdict

if TYPE_CHECKING:
    from argparse import Namespace

HEADS = ("Name", "ID", "Conns", "Lines/s", "Bytes/s", "Dropped/s", "Lines", "Dropped", "Balance", "Log", "Driver",
         "Verdict")
RIGHT = (1, 2, 3, 4, 5, 6, 7, 8)

NAME_WIDTHS = (show.NAME_WIDTH, 30, 22, 16, 12)
"""Columns for names, from the widest terminal to the narrowest."""

_SGR = re.compile(r"\x1b\[[0-9;]*m")

KEYS = {"i": "id", "n": "name", "b": "bytes", "d": "dropped"}
"""Key to sort order."""


def rates(before: dict[tuple[int, str], dict[str, Any]], domains: list[dict[str, Any]],
          seconds: float) -> list[dict[str, Any]]:
    """The rows: the values of each domain, and its rates since `before` (0 for a new domain)."""
    rows = []
    for domain in domains:
        log = domain["log"]
        old = before.get((domain["domid"], domain["uuid"]), domain)["log"]

        def rate(now: float, then: float) -> float:
            # counters start at 0 when the daemon restarts
            return round(max(0.0, now - then) / seconds, 1) if seconds > 0 else 0.0

        dropped, dropped_before = sum(log["dropped_lines"].values()), sum(old["dropped_lines"].values())
        rows.append({
            "domid": domain["domid"], "name": domain["name"], "uuid": domain["uuid"],
            "connections": domain["connections"],
            "lines_per_second": rate(log["lines"], old["lines"]),
            "bytes_per_second": rate(log["bytes"], old["bytes"]),
            "dropped_per_second": rate(dropped, dropped_before),
            "lines": log["lines"], "dropped": dropped, "balance": log["balance"], "throttled": log["throttled"],
            "limited": log["limited"], "driver": driver(domain), "verdict": verdict(domain),
        })
    return rows


def ordered(rows: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """The sorted rows; equal ones are sorted by domid."""
    match order:
        case "name":
            return sorted(rows, key=lambda row: (row["name"], row["domid"]))
        case "bytes":
            return sorted(rows, key=lambda row: (-row["bytes_per_second"], -row["lines"], row["domid"]))
        case "dropped":
            return sorted(rows, key=lambda row: (-row["dropped_per_second"], -row["dropped"], row["domid"]))
    return sorted(rows, key=lambda row: row["domid"])


def fitting(rows: list[dict[str, Any]], columns: int) -> list[str]:
    """The table for a terminal with that many columns. Names are shortened first; the terminal cuts longer lines."""
    table: list[str] = []
    for width in NAME_WIDTHS:
        table = lines(rows, width)
        if max(show.columns(_SGR.sub("", line)) for line in table) <= columns:
            break
    return table


def lines(rows: list[dict[str, Any]], name_width: int = show.NAME_WIDTH) -> list[str]:
    """The table."""
    cells = [
        (show.name(row, name_width), str(row["domid"]), str(row["connections"]), f"{row['lines_per_second']:.1f}",
         f"{row['bytes_per_second']:.0f}", f"{row['dropped_per_second']:.1f}", str(row["lines"]), str(row["dropped"]),
         str(row["balance"]) if row["limited"] else "-",
         "throttled" if row["throttled"] else "ok" if row["limited"] else "unlimited",
         show.cut(row["driver"], 32), row["verdict"])
        for row in rows
    ]
    colours = [
        ("",) * 9 + (show.YELLOW if row["throttled"] else "", "", show.RED if row["verdict"].isupper() else "")
        for row in rows
    ]
    return show.table(HEADS, cells, right=RIGHT, colours=colours)


def top(options: Namespace) -> int:
    """`unplugctl top`."""
    if not options.batch and not options.json and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise Failure(USAGE, "standard input or output is not a terminal", "for files and pipes: unplugctl top -b")
    control = Control(options.socket)
    before, then = control.domains(), time.monotonic()
    if options.batch or options.json:
        return _batch(control, options, before, then)
    return _live(control, options, before, then)


def _look(control: Control, before: list[dict[str, Any]], then: float) -> tuple[list[dict[str, Any]],
                                                                               list[dict[str, Any]], float]:
    now = time.monotonic()
    domains = control.domains()
    known = {(domain["domid"], domain["uuid"]): domain for domain in before}
    return rates(known, domains, now - then), domains, now


def _batch(control: Control, options: Namespace, before: list[dict[str, Any]], then: float) -> int:
    done = 0
    while not options.iterations or done < options.iterations:
        time.sleep(options.delay)
        rows, before, then = _look(control, before, then)
        rows = ordered(rows, options.sort)
        if options.json:
            show.print_json_line({"time": round(time.time(), 3), "domains": rows})
        else:
            for line in lines(rows):
                print(line)
            print(flush=True)
        done += 1
    return OK


def _live(control: Control, options: Namespace, before: list[dict[str, Any]], then: float) -> int:
    import termios
    import tty

    terminal = sys.stdin.fileno()
    kept = termios.tcgetattr(terminal)
    order, done = options.sort, 0
    sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[?7l")  # alternate screen, no cursor, long lines are cut
    try:
        tty.setcbreak(terminal)
        while not options.iterations or done < options.iterations:
            key = _key(terminal, options.delay if done else 0.5)
            if key == "q":
                break
            order = KEYS.get(key, order)
            rows, before, then = _look(control, before, then)
            columns, height = (found or usual for found, usual in zip(os.get_terminal_size(), (80, 24), strict=True))
            head = (f"unplugctl top - {time.strftime('%H:%M:%S')}   {show.plural(len(rows), 'domain')}, "
                    f"{sum(row['throttled'] for row in rows)} throttled   sorted by {order}; "
                    "keys: q quit, i id, n name, b bytes, d dropped")
            screen = [head[:columns - 1], "", *fitting(ordered(rows, order), columns)][:height - 1]
            sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in screen) + "\x1b[J")
            sys.stdout.flush()
            done += 1
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, kept)
        sys.stdout.write("\x1b[?7h\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
    return OK


def _key(terminal: int, seconds: float) -> str:
    if select.select([terminal], [], [], seconds)[0]:
        pressed = os.read(terminal, 1)
        return pressed.decode("ascii", "replace") or "q"
    return ""
