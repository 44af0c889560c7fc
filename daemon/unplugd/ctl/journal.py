"""`unplugctl log` and `events`: records of guests and of unplugd, from the journal or the guests' files.

journalctl reads the journal, because it is installed more often than its library. Every entry is escaped again, because
other programs can write to the journal too. Only entries of unplugd's uid are shown, because any local user can write
entries with the same identifiers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from unplugd.core.guestrules import MIGRATING, bare_name
from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import FAILED, NOT_FOUND, NOT_RUNNING, OK, USAGE, Failure
from unplugd.ctl.guests import Ambiguous, find, is_uuid
from unplugd.sinks.records import Event

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from unplugd.config.load import Config

_FIELDS = ("MESSAGE", "MESSAGE_ID", "PRIORITY", "XEN_DOMID", "XEN_DOMAIN_UUID", "XEN_DOMAIN_NAME", "UNPLUG_PRODUCT",
           "UNPLUG_PRODUCT_NAME", "UNPLUG_BUILD")

KINDS = {event.message_id: event.name.lower().replace("_", "-") for event in Event}
"""MESSAGE_ID to the name of the kind of event in output and --kind."""

_GUEST_LOG = (Event.GUEST_LINE, Event.LINES_DROPPED)
_NOT_EVENTS = {KINDS[event.message_id] for event in _GUEST_LOG}
"""The kinds of records in guest logs."""

FOLLOW_INTERVAL = 0.25
"""Seconds between two looks at a guest's file that is followed."""


def log(options: Namespace) -> int:
    """`unplugctl log DOMAIN`."""
    domain, uid = _known(options)
    config = _config(options)
    if config is not None and "journal" not in config.log.sinks and not (options.directory or options.namespace):
        if "file" in config.log.sinks:
            return _log_file(options, config, domain)
        raise Failure(FAILED, 'log.sinks has neither "journal" nor "file": guest lines go to standard error only',
                      "under systemd that is  journalctl -u unplugd")
    # not by SYSLOG_IDENTIFIER, which is configurable (log.identifier)
    matches = [*(f"MESSAGE_ID={kind.message_id}" for kind in _GUEST_LOG), f"_UID={uid}",
               *_matches(options.domain, domain)]
    for entry in entries(options, matches):
        if options.json:
            show.print_json_line(entry)
        else:
            print(f"{show.moment(entry['time'])}  {show.safe(entry['message'])}", flush=options.follow)
    return OK


def events(options: Namespace) -> int:
    """`unplugctl events [DOMAIN]`."""
    for kind in options.kind or ():
        if kind not in KINDS.values():
            raise Failure(USAGE, f"{show.safe(kind)} is no kind of event",
                          "kinds: " + ", ".join(sorted(set(KINDS.values()) - _NOT_EVENTS)))
    domain, uid = _known(options)
    config = _config(options)
    if config is not None and "journal" not in config.log.sinks and not (options.directory or options.namespace):
        raise Failure(FAILED, 'log.sinks has no "journal": unplugd\'s own records go to its standard error',
                      "under systemd that is  journalctl -u unplugd")
    matches = ["SYSLOG_IDENTIFIER=unplugd", f"_UID={uid}"]
    if options.domain:
        matches += _matches(options.domain, domain)
    matches += [f"MESSAGE_ID={message_id}" for message_id, kind in KINDS.items() if kind in (options.kind or ())]
    for entry in entries(options, matches):
        if options.json:
            show.print_json_line(entry)
            continue
        colour = {"3": show.RED, "4": show.YELLOW}.get(entry["priority"], "")
        kind = show.paint(entry["event"].ljust(22), colour)
        print(f"{show.moment(entry['time'])}  {kind}{show.safe(entry['message'])}", flush=options.follow)
    return OK


def _known(options: Namespace) -> tuple[dict[str, Any] | None, int]:
    """The domain, if unplugd serves it (otherwise its old lines are still found), and unplugd's uid."""
    control = Control(options.socket)
    try:
        uid = control.peer()[1]
        if not options.domain:
            return None, uid
        return find(control.domains(), options.domain), uid
    except Failure as failure:
        if failure.status == NOT_FOUND and not isinstance(failure, Ambiguous):
            return None, control.peer()[1]
        if failure.status == NOT_RUNNING:
            return _published(options, failure), 0
        raise


def _published(options: Namespace, failure: Failure) -> dict[str, Any] | None:
    """The domain as xenstore knows it while unplugd does not answer."""
    from unplugd.ctl import published

    try:
        return find(published.domains(options, failure), options.domain) if options.domain else None
    except Failure:
        return None


def _config(options: Namespace) -> Config | None:
    from pathlib import Path

    from unplugd.config.load import load
    from unplugd.errors import ConfigError

    try:
        return load(Path(options.config) if options.config else None)
    except ConfigError:
        return None     # the journal is the default


def _matches(wanted: str, domain: dict[str, Any] | None) -> list[str]:
    """What journalctl looks for: entries that match one of these."""
    if domain is not None and domain["uuid"]:
        return [f"XEN_DOMAIN_UUID={domain['uuid']}"]
    if domain is not None:
        return [f"XEN_DOMID={domain['domid']}"]
    if wanted.isascii() and wanted.isdigit():
        return [f"XEN_DOMID={wanted}"]
    if is_uuid(wanted):
        return [f"XEN_DOMAIN_UUID={wanted.lower()}"]
    return [f"XEN_DOMAIN_NAME={name}" for name in _names(wanted)]


def _names(name: str) -> list[str]:
    """The names that a guest has while it migrates, `name` first."""
    bare = bare_name(name)
    return list(dict.fromkeys((name, bare, *(bare + suffix for suffix in MIGRATING))))


def entries(options: Namespace, matches: list[str]) -> Iterator[dict[str, Any]]:
    """Entries of the journal under the keys of --json. Raises Failure."""
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        raise Failure(FAILED, "journalctl is not installed", "the sink \"file\" needs no journal: log.sinks")
    command = [journalctl, "--output=json", "--all", "--quiet", "--no-pager", f"--output-fields={','.join(_FIELDS)}"]
    if options.directory:
        command.append(f"--directory={options.directory}")
    if options.namespace:
        command.append(f"--namespace={options.namespace}")
    if options.lines is not None:
        command.append(f"--lines={options.lines}")
    if options.since:
        command.append(f"--since={options.since}")
    if options.follow:
        command.append("--follow")
        if options.lines is None:
            command.append("--lines=10")
    command += matches
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603 # no shell
    assert process.stdout is not None  # noqa: S101 # PIPE
    try:
        for line in process.stdout:
            entry = _entry(line)
            if entry is not None:
                yield entry
    finally:
        process.terminate()
        process.stdout.close()
        status = process.wait()
    # journalctl has printed the problem itself; status 1 without a message means that nothing matched
    if status not in (0, 1, -15):
        raise Failure(FAILED, f"journalctl ended with status {status}")


def _entry(line: bytes) -> dict[str, Any] | None:
    """A journal entry with the keys of --json; None if it is not valid."""
    try:
        raw = json.loads(line)
        seconds = int(raw["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None
    text = {name: _text(raw.get(name)) for name in _FIELDS}

    def number(name: str) -> int | None:
        return int(text[name]) if text[name].isascii() and text[name].isdigit() else None

    return {
        "time": round(seconds, 6),
        "event": KINDS.get(text["MESSAGE_ID"], "other"),
        "message": text["MESSAGE"],
        "priority": text["PRIORITY"],
        "domid": number("XEN_DOMID"),
        "uuid": text["XEN_DOMAIN_UUID"],
        "name": text["XEN_DOMAIN_NAME"],
        "product": number("UNPLUG_PRODUCT"),
        "product_name": text["UNPLUG_PRODUCT_NAME"],
        "build": number("UNPLUG_BUILD"),
    }


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
            return bytes(value).decode("utf-8", "surrogateescape")
        return _text(value[0]) if value else ""      # the entry has this field twice
    return ""


# --- guests' files


def _log_file(options: Namespace, config: Config, domain: dict[str, Any] | None) -> int:
    path = _file(config, options.domain, domain)
    lines = _last_lines(path, 10 if options.follow and options.lines is None else options.lines)
    for line in lines:
        _show_line(options, line)
    if options.follow:
        _follow(options, path)
    return OK


def _file(config: Config, wanted: str, domain: dict[str, Any] | None) -> Path:
    """The guest's file, also if only its older generation is there. Raises Failure."""
    name, domid = (domain["name"], domain["domid"]) if domain else (wanted, 0)
    directory = config.log.directory
    try:
        there = set(os.listdir(directory))
    except FileNotFoundError:
        there = set()
    except OSError as error:
        raise Failure(FAILED, f"{directory}: {error.strerror}", "only root may read guest logs: use sudo") from None
    for each in _candidates(name, domid if domain else None, there):
        if each in there or f"{each}.1" in there:
            return directory / each
    what = f"{show.safe(name)} has logged nothing" if domain else f"no guest {show.safe(wanted)} runs here"
    raise Failure(NOT_FOUND, f"{what}, and {directory} has no file of this name", f"ls {directory}")


def _candidates(name: str, domid: int | None, there: Iterable[str]) -> Iterator[str]:
    """The files that a guest may have, the likeliest first."""
    from unplugd.sinks.files import LONGEST_NAME, file_name

    for each in _names(name):
        file = file_name(each, domid or 0)
        stem = file.removesuffix(".log")
        if domid is not None:
            yield f"{stem}-{domid}.log"  # two domains of one name: the later has its domid in the file's name
        elif len(stem) > len("guest-") + LONGEST_NAME:
            # cut, and with the domid that it had
            yield from (one for one in sorted(there) if one.startswith(stem.removesuffix("0")) and one.endswith(".log"))
        yield file


def _last_lines(path: Path, count: int | None) -> list[bytes]:
    text = b""
    for each in (path.with_name(path.name + ".1"), path):
        try:
            text += each.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Failure(FAILED, f"{each}: {error.strerror}", "only root may read guest logs: use sudo") from None
    lines = text.splitlines()
    return lines if count is None else lines[-count:] if count else []


def _show_line(options: Namespace, line: bytes) -> None:
    stamp, _, message = line.partition(b" ")
    if options.json:
        text = message.decode("ascii", "backslashreplace")
        show.print_json_line({"time": _seconds(stamp), "event": "guest-line", "message": text})
    else:
        print(f"{_moment(stamp)}  {show.safe(message)}", flush=options.follow)


def _seconds(stamp: bytes) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(stamp.decode("ascii")).timestamp()
    except ValueError:
        return 0.0


def _moment(stamp: bytes) -> str:
    seconds = _seconds(stamp)
    return show.moment(seconds) if seconds else show.safe(stamp)


def _follow(options: Namespace, path: Path) -> None:
    """Lines as they are written. If the file is rotated or renamed, reading continues with the new file at the path."""
    while not path.exists():  # only its older generation is there
        time.sleep(FOLLOW_INTERVAL)
    stream = path.open("rb")
    stream.seek(0, os.SEEK_END)
    rest = b""
    try:
        while True:
            rest += stream.read()
            *lines, rest = rest.split(b"\n")
            for line in lines:
                _show_line(options, line)
            sys.stdout.flush()
            time.sleep(FOLLOW_INTERVAL)
            try:
                if path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                    rest += stream.read()
                    stream.close()
                    stream = path.open("rb")
            except FileNotFoundError:
                continue
    finally:
        stream.close()
