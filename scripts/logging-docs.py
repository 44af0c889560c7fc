#!/usr/bin/env python3
"""Writes the tables of docs/logging.md from the code; with --check, only says whether they are what the code says."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

import docspage

from unplugd.core.escape import escape_journal, escape_text
from unplugd.sinks.files import file_name
from unplugd.sinks.records import ERROR, INFO, NOTICE, WARNING, Event

GUEST = "guest"
HOST = "dom0"
CLIENT = "device model"

PRIORITIES = {ERROR: "3 error", WARNING: "4 warning", NOTICE: "5 notice", INFO: "6 info"}

EVENTS = {
    Event.GUEST_LINE: (GUEST, "A line that the guest wrote. No other record contains text of a guest."),
    Event.LINES_DROPPED: (GUEST, "How many lines and bytes of this guest were dropped. It is in the guest's own log."),
    Event.ANNOUNCED: (GUEST, "A driver announced its build number; the verdict."),
    Event.BLACKLISTED: (GUEST, "The driver of a guest is blacklisted; the reason, if one was given."),
    Event.REPORTED: (GUEST, "A driver is on the blacklist, with the action `report`: the guest does not notice."),
    Event.IGNORED: (GUEST, "A driver was refused and unplugs devices all the same (action `refuse`). Recorded once."),
    Event.UNPLUGGED: (GUEST, "Devices were ordered to be unplugged for the first time since the last reset."),
    Event.UNPLUG_DENIED: (GUEST, "A device that the driver asked for stays: by `allow_unplug`, or it is withheld."),
    Event.UNDEFINED_BITS: (GUEST, "An unplug mask had undefined bits. Recorded once between two resets."),
    Event.BUILD_WITHOUT_PRODUCT: (GUEST, "A build number without a product number was ignored. Once between resets."),
    Event.RESET: (GUEST, "The platform device came out of reset; unplugd forgot the guest's protocol state."),
    Event.THROTTLED: (GUEST, "The guest's log is over its limit."),
    Event.RESUMED: (GUEST, "The guest's log is within its limit again."),
    Event.PROTOCOL_FAULT: (CLIENT, "A device model sent an invalid frame; its connection was closed."),
    Event.CONNECTION_DENIED: (CLIENT, ("A process tried to connect that is neither root nor the device model, or to the"
                                       " control socket without being root.")),
    Event.CONNECTION_LIMIT: (CLIENT, "A domain's socket has the maximum number of connections."),
    Event.INTRODUCED: (HOST, "A domain was introduced and has its socket."),
    Event.RELEASED: (HOST, "A domain was released; its socket is removed."),
    Event.RENAMED: (HOST, "A domain has a new name."),
    Event.STORE_CONNECTED: (HOST, "xenstore is connected; unplugd has read its domains and blacklist."),
    Event.STORE_LOST: (HOST, "xenstore is not connected, and why. unplugd tries again."),
    Event.STORE_REFUSED: (HOST, "xenstore refused a request or could not be read."),
    Event.MALFORMED_NODE: (HOST, "A node below /mh/driver-blacklist is named by no build number and has no effect."),
    Event.VERDICT_FALLBACK: (GUEST, "A verdict was given without xenstored: why, and what decided."),
    Event.SINK_FAILED: (HOST, "A file, a directory or a socket that unplugd needs is not available."),
    Event.SINK_RECOVERED: (HOST, "A guest's log file can be written again."),
    Event.RECORDS_LOST: (HOST, "How many of unplugd's own records were lost while their sink accepted none."),
    Event.STARTED: (HOST, "unplugd started."),
    Event.STOPPED: (HOST, "unplugd stopped."),
    Event.POLICY_CHANGED: (HOST, "Another `[[guest]]` table counts for a guest, or another action for its driver."),
    Event.CONFIGURATION_WARNING: (HOST, "A key of the configuration is deprecated, or has no effect."),
    Event.RELOADED: (HOST, "A new configuration is in effect."),
    Event.RELOAD_REFUSED: (HOST, "A new configuration was refused, and why. The previous one stays in effect."),
    Event.INTERNAL: (HOST, "A fault of unplugd itself. If it ends a task, unplugd ends and systemd starts it again."),
}
"""Each kind of record: who can cause it, and what it says."""


def events() -> str:
    """The catalogue."""
    missing = set(Event) - EVENTS.keys()
    assert not missing, f"no sentence for {missing}"
    return docspage.table(
        ("kind", "`MESSAGE_ID`", "`PRIORITY`", "caused by", "content"),
        (
            (f"`{event.name}`", f"`{event.message_id}`", PRIORITIES[event.priority], *EVENTS[event])
            for event in Event
        ),
    )


LINES = (b"eth0 up", b"tab\there", b"\x1b[31mred", b"C:\\temp", "Größe".encode(), b"\xff\xfe",
         "abc\u202edef".encode(), "soft\u00adhyphen".encode())


def escaping() -> str:
    """The two escapings side by side."""
    rows = []
    for raw in LINES:
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else f"⟨{byte:02x}⟩" for byte in raw)
        rows.append((f"`{shown}`", f"`{escape_text(raw)}`", f"`{escape_journal(raw).decode()}`"))
    return docspage.table(("the guest's bytes", "text sinks", "journal"), rows)


NAMES = (("web-01", 7), ("db server/1", 8), ("größe", 9), ("x" * 300, 10))


def files() -> str:
    """Names of files."""
    rows = []
    for name, domid in NAMES:
        file = file_name(name, domid)
        rows.append(tuple(f"`{text if len(text) < 60 else text[:24] + '...' + text[-12:]}`" for text in
                          (name, str(domid), file)))
    return docspage.table(("domain's name", "domid", "file"), rows)


PARTS = {"events": events(), "escaping": escaping(), "files": files()}

if __name__ == "__main__":
    sys.exit(docspage.main("logging.md", PARTS))
