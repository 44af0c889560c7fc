"""The command `unplugctl`: its arguments, and how it ends.

The parser is the one source of the help texts, the man page (scripts/man-docs.py) and the shell completion
(completion.py). Which function runs is named as text, so that only its module is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from unplugd import __version__
from unplugd.ctl import show
from unplugd.ctl.failure import EXITS, FAILED, OK, USAGE, Failure, tell
from unplugd.host import streams

DOMAIN = "a domain's name, domid or uuid"
PRODUCT = "a product's name or number: linux, 3, xensource-windows, ..."
BUILD = "its build number: decimal, 0x..., or a version of XENBUS's as 9.0.4"

EPILOG = "\n".join(["Exit status:", *(f"  {number}  {meaning}" for number, meaning in EXITS)])


class _Help(argparse.HelpFormatter):
    """Help text of at most a hundred columns, on any terminal."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, max_help_position=28, width=min(100, int(columns) if columns.isdigit() else 100))


class _HelpWithLines(_Help, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the epilog."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the next step."""

    def error(self, message: str) -> Any:
        """Part of argparse: ends the process with status 2."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n  {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The arguments of `unplugctl`."""
    result = Parser(
        prog="unplugctl",
        description="Look after unplugd: the guests it serves, their PV drivers, the driver blacklist, guest logs.",
        epilog=EPILOG,
        formatter_class=_HelpWithLines,
    )
    _common(result, first=True)
    result.add_argument("--version", action="version", version=f"unplugctl {__version__}")
    commands = result.add_subparsers(metavar="COMMAND", title="commands")
    _guests(commands)
    _logs(commands)
    _blacklist(commands)
    _configuration(commands)
    status = _command(commands, "status", "status:status", "whether unplugd runs and works",
                      "Shows whether unplugd runs, whether it is ready and what it waits for, and lists problems.")
    _json(status)
    report = _command(commands, "report", "report:report", "one file for a report of a fault",
                      "Writes a tar with what helps to find a fault: versions, configuration, status, guests, unplugd's"
                      " own records, units, xenstore. It works while unplugd is down or its configuration is wrong."
                      " What guests wrote is not in it.")
    output = report.add_argument("-o", "--output", metavar="FILE",
                                 help="write this file, which must not exist; - for standard output (default:"
                                      " unplugd-report-TIME.tar, here)")
    output.complete = "file"  # type: ignore[attr-defined] # read by completion.py
    completion = _command(commands, "completion", "completion:print_script", "shell completion",
                          "Prints the completion script of a shell. Packages install it. Without a package:"
                          ' eval "$(unplugctl completion bash)"')
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish", "domains"),
                            help="bash, zsh or fish; `domains` prints the completions of DOMAIN")
    return result


def _common(command: argparse.ArgumentParser, *, first: bool = False) -> None:
    """Options that are allowed before and after the command's name."""
    def default(value: str | None) -> Any:
        return value if first else argparse.SUPPRESS

    config = command.add_argument("--config", metavar="FILE", default=default(None),
                                  help="unplugd's configuration, as with unplugd (default /etc/unplugd/unplugd.toml)")
    config.complete = "file"  # type: ignore[attr-defined] # read by completion.py
    sock = command.add_argument("--socket", metavar="PATH", default=default(None),
                                help="unplugd's control socket (default control.sock in the configured runtime_dir)")
    sock.complete = "file"  # type: ignore[attr-defined] # read by completion.py
    command.add_argument("--color", "--colour", metavar="WHEN", choices=("auto", "always", "never"),
                         default=default("auto"), help="auto (on a terminal, unless NO_COLOR is set), always or never")


def _command(commands: Any, name: str, run: str, help: str, description: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, formatter_class=_Help)
    command.set_defaults(run=run)
    _common(command)
    return command


def _json(command: argparse.ArgumentParser, help: str = "print JSON (its keys: unplugctl(1))") -> None:
    command.add_argument("-l", "--json", action="store_true", help=help)


def _domain(command: argparse.ArgumentParser, name: str = "domain", nargs: str | None = None,
            help: str = DOMAIN) -> None:
    action = command.add_argument(name, metavar="DOMAIN", nargs=nargs, help=help)
    action.complete = "domain"  # type: ignore[attr-defined] # read by completion.py


def _guests(commands: Any) -> None:
    listed = _command(commands, "list", "guests:list_domains", "the guests, one line each",
                      "Shows one line for each guest: the PV driver that it announced, the verdict, the unplugged"
                      " devices, and the state of its log. While unplugd does not run, shows what it published in"
                      " xenstore, and ends with status 3.")
    _json(listed)
    _domain(listed, "domains", "*", "only these guests: names, domids or uuids")
    shown = _command(commands, "show", "guests:show_domain", "one guest, in words",
                     "Explains one guest: what its driver did and when, the verdict and its reason, and what you can"
                     " do.")
    _json(shown)
    _domain(shown)
    top = _command(commands, "top", "top:top", "log rates of the guests, live",
                   "Shows the current rates of guest logs. On a terminal, q quits, and i, n, b, d sort by id, name,"
                   " bytes, dropped lines.")
    _json(top, "print JSON, one line per iteration; implies -b")
    top.add_argument("-b", "--batch", action="store_true", help="print one table after another, for files and pipes")
    top.add_argument("-i", "--iterations", metavar="N", type=_count, default=0,
                     help="end after N iterations (default: never)")
    top.add_argument("-d", "--delay", metavar="SECS", type=_seconds, default=3.0,
                     help="seconds between two iterations (default 3)")
    top.add_argument("-s", "--sort", metavar="BY", choices=("id", "name", "bytes", "dropped"), default="bytes",
                     help="sort by id, name, bytes (the default) or dropped")


def _logs(commands: Any) -> None:
    log = _command(commands, "log", "journal:log", "what a guest wrote to its log",
                   "Shows the lines of a guest's log: from the journal, or from the guest's file if the journal is not"
                   " among unplugd's sinks. It also finds guests that no longer exist.")
    _domain(log)
    _journal(log)
    events = _command(commands, "events", "journal:events", "what happened: drivers, verdicts, unplugs, faults",
                      "Shows unplugd's own records in the journal: drivers announced, verdicts, unplug orders, resets,"
                      " throttled guests, faults, connections denied.")
    _domain(events, nargs="?", help=f"only events of this guest: {DOMAIN}")
    _journal(events)
    events.add_argument("-k", "--kind", metavar="KIND", action="append",
                        help="only this kind of event (second column of the output); may be repeated")


def _journal(command: argparse.ArgumentParser) -> None:
    _json(command, "print JSON, one line per entry")
    command.add_argument("-f", "--follow", action="store_true", help="print new entries, until interrupted")
    command.add_argument("-n", "--lines", metavar="N", type=_count,
                         help="only the last N entries (default: all; with -f: 10)")
    command.add_argument("-S", "--since", metavar="TIME",
                         help="only since TIME, in the format of journalctl: today, -1h, 2026-01-31 12:00")
    directory = command.add_argument("-D", "--directory", metavar="DIR", help="read the journal in this directory")
    directory.complete = "file"  # type: ignore[attr-defined] # read by completion.py
    command.add_argument("--namespace", metavar="NS", help="read this journal namespace (LogNamespace= of the unit)")


def _blacklist(commands: Any) -> None:
    group = commands.add_parser(
        "blacklist", help="which driver builds must not be used", formatter_class=_Help,
        description="Shows and changes the driver blacklist, in xenstore (/mh/driver-blacklist) and in the"
                    " configuration. It works while unplugd is down.")
    actions = group.add_subparsers(metavar="ACTION", title="actions", required=True)
    listed = _command(actions, "list", "blacklist:list_entries", "show the whole blacklist",
                      "Shows every blacklisted build, where it is listed, and how many running guests have such a"
                      " driver.")
    _json(listed)
    checked = _command(actions, "check", "blacklist:check", "whether a build is blacklisted, and why",
                       "Shows whether a build is blacklisted, where it is listed, and which running guests have it. The"
                       " exit status is 1 if it is blacklisted.")
    _build(checked)
    impact = _command(actions, "impact", "impact:impact", "which running guests it would hit, if it were enforced",
                      "Says which running guests the blacklist would hit if it were enforced, by which rule, and what"
                      " that does to their drivers. Nothing changes. The exit status is 1 if any guest would be"
                      " refused.")
    _json(impact)
    file = impact.add_argument("-f", "--file", metavar="FILE",
                               help="as if this file were in conf.d too, in the place of the one of the same name")
    file.complete = "file"  # type: ignore[attr-defined] # read by completion.py
    added = _command(actions, "add", "blacklist:add", "blacklist a build",
                     "Blacklists a build of a product. It counts for drivers that announce themselves later. Running"
                     " guests are not affected; those with this driver are listed.")
    _build(added)
    added.add_argument("-r", "--reason", metavar="TEXT", help="the reason; `show` and the records repeat it")
    added.add_argument("-a", "--action", metavar="ACTION", choices=("report", "refuse", "withhold"),
                       help="report, refuse or withhold, if not what blacklist.action says; with --persist")
    added.add_argument("-g", "--guests", metavar="PATTERN", action="append",
                       help="only for guests with this name (with *, ?) or uuid; may be repeated; with --persist")
    added.add_argument("-y", "--yes", action="store_true", help="do not ask, even if the entry hits every Linux guest")
    removed = _command(actions, "remove", "blacklist:remove", "remove a build from the blacklist",
                       "Removes a build from the blacklist. A guest whose driver is blacklisted keeps this verdict"
                       " until its next start.")
    _build(removed)
    for command in (added, removed):
        command.add_argument("-p", "--persist", action="store_true",
                             help="also in conf.d, because xenstore loses it when dom0 reboots; makes unplugd reload")


def _build(command: argparse.ArgumentParser) -> None:
    _json(command)
    product = command.add_argument("product", metavar="PRODUCT", help=PRODUCT)
    product.complete = "product"  # type: ignore[attr-defined] # read by completion.py
    command.add_argument("build", metavar="BUILD", help=BUILD)


def _configuration(commands: Any) -> None:
    group = commands.add_parser("config", help="unplugd's configuration", formatter_class=_Help,
                                description="Checks and shows unplugd's configuration files.")
    actions = group.add_subparsers(metavar="ACTION", title="actions", required=True)
    checked = _command(actions, "check", "configuration:check", "check the configuration",
                       "Checks the configuration as `unplugd --check` does. If it is valid, a reload will accept it.")
    _json(checked)
    shown = _command(actions, "show", "configuration:show_configuration", "show the configuration",
                     "Shows the configuration files in the order in which they are read. With --effective: every key"
                     " with the value in effect, as one file.")
    shown.add_argument("-e", "--effective", action="store_true", help="every key with its value, defaults included")
    _json(shown, "print the effective values as JSON")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of iterations or lines")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.05 to 86400")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `unplugctl`; returns the exit status."""
    result = parser()
    options = result.parse_args(arguments)
    run = getattr(options, "run", None)
    if run is None:
        result.print_help()
        return USAGE
    show.use_colour(options.color)
    try:
        module, _, function = run.partition(":")
        if options.socket is None and module not in ("configuration", "report"):
            from unplugd.ctl.control import runtime_directory

            options.socket = os.path.join(runtime_directory(options.config), "control.sock")
        status = getattr(importlib.import_module(f"unplugd.ctl.{module}"), function)(options)
        sys.stdout.flush()
        return int(status)
    except Failure as failure:
        sys.stdout.flush()
        tell(failure)
        return failure.status
    except KeyboardInterrupt:
        # this is how a user ends -f and top
        return OK if getattr(options, "follow", False) or run.startswith("top:") else 128 + signal.SIGINT


def entry() -> int:
    """The console script: main(), but a reader that closes the pipe (`| head`) ends it quietly."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if streams.open_closed():
        tell(Failure(FAILED, "standard output is closed"))
        return FAILED
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except OSError as error:    # of print() and flush(): of all others main() makes a Failure
        streams.give_up_output()
        tell(Failure(FAILED, f"standard output: {error.strerror}"))
        return FAILED
