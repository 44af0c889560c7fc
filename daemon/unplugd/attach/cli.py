"""`unplugd-attach`: the command, its records, its signals."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import deque
from pathlib import Path

from unplugd import __version__
from unplugd.attach.supervisor import Supervisor
from unplugd.config.load import Config, load
from unplugd.core.escape import visible
from unplugd.errors import ConfigError, HostError
from unplugd.host import systemd
from unplugd.sinks.journal import Journal
from unplugd.sinks.records import INFO, Entry
from unplugd.xenstore.choice import open_store

_UNSENT_LIMIT = 1000
PRIVCMD = Path("/dev/xen/privcmd")
CAPABILITIES = Path("/proc/xen/capabilities")


class Records:
    """Writes the records of unplugd-attach to the journal, or to standard error if `journal` is None.

    If journald is slow or down, records wait here, and the oldest are dropped when there are too many. Nothing else
    waits.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._unsent: deque[Entry] = deque(maxlen=_UNSENT_LIMIT)

    def report(self, domid: int | None, text: str) -> None:
        """Write a record, about a domain or a general one."""
        if self._journal is None:
            about = "" if domid is None else f"domain {domid}: "
            print(f"unplugd-attach: {about}{visible(text)}", file=sys.stderr, flush=True)
            return
        fields = [("PRIORITY", INFO), ("SYSLOG_IDENTIFIER", "unplugd-attach")]
        if domid is not None:
            fields.append(("XEN_DOMID", str(domid)))
            text = f"domain {domid}: {text}"
        waiting = bool(self._unsent)
        self._unsent.append(Entry(time.time(), text.encode("utf-8", "backslashreplace"), tuple(fields)))
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        while self._journal is not None and self._unsent:
            try:
                sent = self._journal.send(self._unsent[0])
            except OSError:
                sent = True  # it can never be sent
            if not sent:
                self._journal.when_writable(self._flush)
                return
            self._unsent.popleft()


async def _serve(settings: Config, records: Records) -> None:
    supervisor = Supervisor(open_store(settings.xenstore), settings.runtime_dir, settings.attach, records.report)
    supervisor.prepare()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):  # what other services take for a reload
        signal.signal(number, signal.SIG_IGN)
    systemd.notify("READY=1")
    await supervisor.run()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM. Returns 0, or 2 if the configuration or this host is wrong."""
    parser = argparse.ArgumentParser(
        prog="unplugd-attach",
        description="Put unplugd in front of the QEMU of every HVM domain of this host (dom0 only).",
    )
    parser.add_argument("--config", metavar="FILE", type=Path,
                        help="read this configuration file instead of /etc/unplugd/unplugd.toml")
    parser.add_argument("--stderr", action="store_true", help="write records to standard error, not to the journal")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    try:
        settings = load(options.config)
        _require_dom0()
        asyncio.run(_serve(settings, Records(None if options.stderr else Journal())))
    except (ConfigError, HostError) as error:
        print(f"unplugd-attach: {error}", file=sys.stderr)
        return 2
    return 0


def _require_dom0() -> None:
    """Raises HostError if there is no Xen, or if this is not dom0."""
    if not PRIVCMD.exists():
        raise HostError("Xen", str(PRIVCMD), "is not there")
    try:
        capabilities = CAPABILITIES.read_text()
    except OSError:
        return  # hidden by systemd (ProtectKernelTunables= mounts another /proc); the unit has a condition for it
    if "control_d" not in capabilities:
        raise HostError("Xen", str(CAPABILITIES), "says that this is not dom0")
