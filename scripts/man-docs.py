#!/usr/bin/env python3
"""Writes man/* from the arguments of the commands and config/unplugd.toml; with --check, checks if they are current."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

from unplugd import __version__, cli
from unplugd.attach import cli as attach_cli
from unplugd.config.keys import KEYS, Wrong
from unplugd.ctl import cli as ctl_cli
from unplugd.ctl.failure import EXITS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "man"
EXAMPLE = ROOT / "config" / "unplugd.toml"

EXIT_STATUS = {
    "unplugd": [
        (0, "Stopped by a signal, or with --check: the configuration is valid."),
        (1, "A fault of unplugd itself; the last record describes it."),
        (2, "Wrong arguments, an invalid configuration, or a host that lacks something that unplugd needs."),
    ],
    "unplugd-attach": [
        (0, "Stopped by a signal."),
        (2, "Wrong arguments, an invalid configuration, or a host that is not dom0."),
    ],
    "unplugctl": list(EXITS),
}

UNPLUGD = {
    "DESCRIPTION": """\
Serves the HVM emulated device unplug protocol of Xen (docs/misc/hvm-emulated-unplug.pandoc in xen.git) to the guests of
this host. With this protocol, PV drivers announce product and build, learn whether they are blacklisted, ask to unplug
emulated devices, and write log lines. The device model of each guest, or unplugd-attach(8) on its behalf, forwards the
accesses through a socket in the runtime directory.

unplugd runs in the foreground. Its records go to the journal if it is among the sinks, otherwise to standard error.
""",
    "SIGNALS": """\
@SIGHUP@ Reads the configuration again. All of it is checked before anything is applied. On an error, the previous
configuration stays in effect. Guest log files are reopened.
@SIGUSR1, SIGUSR2@ Ignored.
@SIGTERM, SIGINT@ Stops. State is kept for the next start, so guests and device models do not notice a restart.
""",
    "FILES": """\
@/etc/unplugd/unplugd.toml, /etc/unplugd/conf.d/*.toml@ The configuration, unplugd.toml(5).
@/run/unplugd/dom<domid>.sock@ The guests' sockets.
@/run/unplugd/control.sock@ HTTP for root, with the JSON API. unplugctl(1) uses it.
@/run/unplugd/pages.sock@ Here unplugd-attach(8) lends the shared page of a guest's accesses. For root only.
@/run/unplugd/state/@ State that survives a restart of the service, but not of the host.
@/var/log/xen/unplugd/@ The guests' logs, with the sink "file".
""",
    "ENVIRONMENT": """\
@XENSTORED_PATH, XENSTORED_RUNDIR@ Where xenstored's socket is, as for libxenstore.
@NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, LISTEN_FDNAMES@ Set by systemd for readiness, for the watchdog, and for a
listening socket called "http" for metrics.
""",
    "SEE ALSO": "unplugctl(1), unplugd.toml(5), unplugd-attach(8), xl(1), journalctl(1)",
}

ATTACH = {
    "DESCRIPTION": """\
Puts unplugd(8) in front of an unmodified QEMU. For every HVM domain of this host it runs an ioreq server on the ports
of the protocol. It forwards the accesses to unplugd, and makes QEMU unplug the devices that unplugd orders. It runs in
dom0 only. Each domain has its own process, which has given up all privileges.
""",
    "SIGNALS": "@SIGTERM, SIGINT@ Stops. All ports go back to QEMU.\n",
    "FILES": """\
@/etc/unplugd/unplugd.toml@ The configuration, shared with unplugd: unplugd.toml(5).
@/run/unplugd/attach/@ The ids of its ioreq servers, for the next start after a crash.
""",
    "SEE ALSO": "unplugd(8), unplugd.toml(5), unplugctl(1), xl(1)",
}

CTL = {
    "DESCRIPTION": """\
The administrator's tool of unplugd(8). DOMAIN is a domid, a uuid or a name. If several match, the domid wins, then the
uuid. Text from guests is escaped in all output. Colour is used only on a terminal, unless --color says otherwise.
""",
    "JSON": """\
With -l or --json, output is JSON. Later versions may add keys but do not remove any. list, show, blacklist, config and
status print one object; log, events and top print one object per line. docs/unplugctl.md explains the keys; packages
install it under /usr/share/doc/unplugd/.
""",
    "FILES": """\
@/run/unplugd/control.sock@ unplugd's control socket, for root only.
@/etc/unplugd/conf.d/50-unplugctl.toml@ The file that blacklist add --persist writes. Comments and other keys are kept.
""",
    "ENVIRONMENT": "@NO_COLOR@ If set, no colour is used.\n",
    "EXAMPLES": """\
@unplugctl show web-01@ Why a guest's driver was refused, and what to do about it.
@unplugctl blacklist add --persist xensource-windows 86451 --reason "loses data on resume"@ Blacklist this build, also
after a reboot of dom0.
@unplugctl top -b -i 2 -d 10 -s dropped@ Which guests lost log lines in ten seconds.
""",
    "SEE ALSO": "unplugd(8), unplugd.toml(5), xl(1), xentop(1), journalctl(1)",
}


_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "~": "\\(ti"})


def text(raw: str) -> str:
    """Text as roff has it. A long path may be broken after its slashes and commas."""
    breakable = re.sub(r"\S{40,}", lambda word: re.sub(r"(?<=[,/])", "\0", word[0]), raw)
    escaped = breakable.translate(_ESCAPES).replace("\0", "\\:")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in escaped.splitlines())


def bold(raw: str) -> str:
    """The same in bold."""
    return f"\\fB{text(raw)}\\fR"


def head(name: str, section: int, about: str) -> list[str]:
    """The beginning of a page."""
    return [
        '.\\" Generated by scripts/man-docs.py.',
        f'.TH {name.upper()} {section} "" "unplugd {__version__}" "unplugd"',
        ".nh",
        ".ad l",
        ".ds AD l",  # groff 1.23 (Debian 13) adjusts again at every paragraph without it
        ".SH NAME",
        f"{text(name)} \\- {text(about)}",
    ]


def body(parts: dict[str, str], *titles: str) -> Iterator[str]:
    """Sections of prose. `@term@ explanation` is an item of a list."""
    for title in titles:
        if title not in parts:
            continue
        yield f".SH {title}"
        for paragraph in parts[title].strip().split("\n\n"):
            items = re.findall(r"^@(.+?)@ (.+?)(?=^@|\Z)", paragraph, re.MULTILINE | re.DOTALL)
            if not items:
                yield from (".PP", text(paragraph))
            for term, explanation in items:
                yield from (".TP", bold(term), text(explanation.strip()))


def exits(name: str) -> Iterator[str]:
    """EXIT STATUS."""
    yield ".SH EXIT STATUS"
    for number, meaning in EXIT_STATUS[name]:
        sentence = meaning[0].upper() + meaning[1:].rstrip(".") + "."
        yield from (".TP", bold(str(number)), text(sentence))


def usage(parser: argparse.ArgumentParser) -> str:
    """One line of SYNOPSIS."""
    words = " ".join(parser.format_usage().removeprefix("usage: ").split())
    name, _, rest = words.partition(" ")
    return f"{bold(name)} {text(rest)}"


def options(parser: argparse.ArgumentParser, leave_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """The options and arguments of a parser as a list."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or leave_out & set(action.option_strings):
            continue
        if action.option_strings:
            value = f" \\fI{text(str(action.metavar or action.dest.upper()))}\\fR" if action.nargs != 0 else ""
            term = ", ".join(f"{bold(option)}{value}" for option in action.option_strings)
        else:
            term = f"\\fI{text(str(action.metavar or action.dest))}\\fR"
        about = (action.help or "").replace("%(prog)s", parser.prog)
        about = about.rstrip(".") + "."
        yield from (".TP", term, text(about))


def command_page(name: str, parser: argparse.ArgumentParser, parts: dict[str, str], about: str) -> str:
    """The page of a command without sub-commands."""
    lines = [*head(name, 8, about), ".SH SYNOPSIS", usage(parser), *body(parts, "DESCRIPTION"), ".SH OPTIONS"]
    lines += [*options(parser), *exits(name), *body(parts, "SIGNALS", "FILES", "ENVIRONMENT", "SEE ALSO")]
    return "\n".join(lines) + "\n"


COMMON = frozenset({"--config", "--socket", "--color", "--help"})


def ctl_page() -> str:
    """unplugctl(1)."""
    parser = ctl_cli.parser()
    lines = [*head("unplugctl", 1, "administer unplugd: guests, PV drivers, blacklist, guest logs"),
             ".SH SYNOPSIS", f"{bold('unplugctl')} [\\fIOPTIONS\\fR] \\fICOMMAND\\fR ...",
             *body(CTL, "DESCRIPTION"), ".SH OPTIONS",
             text("Options of all commands, before or after the command."), *options(parser),
             ".SH COMMANDS"]
    for command in _leaves(parser):
        words = usage(command)
        for common in (r" \[\\-h\]", r" \[\\-\\-config FILE\]", r" \[\\-\\-socket PATH\]", r" \[\\-\\-color WHEN\]"):
            words = re.sub(common, "", words)
        lines += [f".SS {text(command.prog.removeprefix('unplugctl '))}", words, ".PP",
                  text((command.description or "").replace("%%", "%")), *options(command, COMMON)]
    lines += [*body(CTL, "JSON"), *exits("unplugctl"), *body(CTL, "FILES", "ENVIRONMENT", "EXAMPLES", "SEE ALSO")]
    return "\n".join(lines) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for child in action.choices.values():
            yield from _leaves(child)


# --- unplugd.toml(5)


def allowed(key: str) -> str:
    """What a key may be, in the words of the error for what it may not."""
    check = KEYS[key]
    for probe in ("\x00", "x", object()):
        try:
            check(probe)
        except Wrong as wrong:
            said = str(wrong)
            if said != "a string without control characters":
                return said
    return "a string"


def toml_page() -> str:
    """unplugd.toml(5), from the comments of the example."""
    begin, *sections = re.split(r"^\[([a-z]+)\]\n", EXAMPLE.read_text(), flags=re.MULTILINE)
    intro, _, first = begin.partition("\n\n")
    prose = [line.removeprefix("#").strip() for line in intro.splitlines()[1:]]
    lines = [
        *head("unplugd.toml", 5, "configuration of unplugd"),
        ".SH SYNOPSIS", bold("/etc/unplugd/unplugd.toml"), ".br", bold("/etc/unplugd/conf.d/*.toml"),
        ".SH DESCRIPTION",
        text("The format is TOML. An unknown key or a bad value is an error. Check with unplugctl config check, which "
             "names the file, the key and the allowed values. With --config FILE, FILE and FILE.d/*.toml are read "
             "instead."),
        ".PP", text(" ".join(" ".join(prose).replace("A line `#key = value` shows the default; a line `#: ...` is an "
                                                     "example.", "").split("unplugd --check")[0].split())
                    .removeprefix("Every key is here.").strip()),
        ".SH KEYS", *keys("", first),
    ]
    for name, content in zip(sections[::2], sections[1::2], strict=True):
        lines += [f".SH [{name.upper()}]", *keys(name, content)]
    lines += [".SH SEE ALSO", text("unplugd(8), unplugctl(1), unplugd-attach(8)")]
    return "\n".join(lines) + "\n"


def keys(section: str, content: str) -> Iterator[str]:
    """The keys of a section, each with its comment, its default and what is allowed."""
    for paragraph in re.split(r"\n\s*\n", content.strip()):
        comment = " ".join(line.removeprefix("#").strip() for line in paragraph.splitlines() if line.startswith("# "))
        named = re.findall(r"^#([a-z_]+) = (.*)$", paragraph, re.MULTILINE)
        example = [line.removeprefix("#: ") for line in paragraph.splitlines() if line.startswith("#: ")]
        for at, (name, default) in enumerate(named):
            key = f"{section}.{name}" if section else name
            if key not in KEYS:
                raise SystemExit(f"{EXAMPLE}: {key} is not a key of unplugd")
            yield from (".TP", f"{bold(key)} = {text(default)}")
            about = comment if at == 0 else "As above."
            yield from (text(about), ".br", text(f"Allowed: {allowed(key)}."))
        if example:
            table = re.search(r"\[\[([a-z.]+)\]\]", "\n".join(example))
            yield from (".TP", bold(f"[[{table[1]}]]" if table else f"[{section}]"), text(comment), ".IP", ".nf",
                        *map(text, example), ".fi")


class _Captured(Exception):
    """A parser that was about to be used."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def attach_parser() -> argparse.ArgumentParser:
    """The arguments of unplugd-attach, which makes its parser where it needs it."""
    def capture(self: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise _Captured(self)

    kept = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = capture  # type: ignore[method-assign,assignment] # for a moment, see below
    try:
        attach_cli.main([])
    except _Captured as captured:
        return captured.parser
    finally:
        argparse.ArgumentParser.parse_args = kept  # type: ignore[method-assign] # as it was
    raise SystemExit("unplugd-attach takes no arguments")


def pages() -> dict[str, str]:
    """File name to text."""
    return {
        "unplugd.8": command_page("unplugd", cli.parser(), UNPLUGD,
                                  "Xen HVM unplug protocol: driver blacklist, guest logs, metrics"),
        "unplugd-attach.8": command_page("unplugd-attach", attach_parser(), ATTACH,
                                         "unplugd in front of an unmodified QEMU"),
        "unplugctl.1": ctl_page(),
        "unplugd.toml.5": toml_page(),
    }


def main() -> int:
    """Returns the exit status."""
    stale = [name for name, page in pages().items()
             if not (PAGES / name).exists() or (PAGES / name).read_text() != page]
    if sys.argv[1:] == ["--check"]:
        for name in stale:
            print(f"man/{name} is not what commands and configuration say: run scripts/man-docs.py", file=sys.stderr)
        return bool(stale)
    PAGES.mkdir(exist_ok=True)
    for name, page in pages().items():
        (PAGES / name).write_text(page)
    return 0


if __name__ == "__main__":
    # argparse takes the terminal's width otherwise
    import os

    os.environ["COLUMNS"] = "100"
    sys.exit(main())
