#!/usr/bin/python3
"""Gives QEMUs with the device `unplugd` a connection to unplugd: pass-socket.py [DOMID...], by default to all of them.

For a QEMU that cannot open the socket's path again after unplugd was restarted, because it runs under dm_restrict or in
a root directory of its own. A QEMU that is connected is left alone. The device needs the id `unplugd`. Runs as root in
dom0. Status 1: a domain that was named, or one that is not connected, got no socket.
"""

import json
import re
import socket
import sys
from pathlib import Path

MONITOR = "/var/run/xen/qmp-libxenstat-{}"
SOCKET = "/run/unplugd/dom{}.sock"
DEVICE = "/machine/peripheral/unplugd"
SECONDS = 15.0  # QEMU may wait for unplugd before it answers (the device's property `wait`)


class Refused(Exception):
    """QEMU answered with an error; `kind` is its class."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(error["desc"])
        self.kind = error["class"]


class Monitor:
    """QEMU's monitor (QMP). Raises OSError, ValueError and Refused."""

    def __init__(self, domid: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        try:
            self._socket.connect(MONITOR.format(domid))
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Let the next client in: QEMU serves one at a time."""
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, descriptors: tuple[int, ...] = (), **arguments: str) -> object:
        """Carry out a command and return its result."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        socket.send_fds(self._socket, [request], descriptors)
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise Refused(answer["error"])
            if "return" in answer:  # anything else is an event
                return answer["return"]
        raise OSError("the monitor closed the connection")


def pass_socket(domid: int) -> str:
    """Returns what was done; "" where the QEMU has no such device."""
    monitor = Monitor(domid)
    try:
        try:
            if monitor.execute("qom-get", path=DEVICE, property="connected"):
                return "is connected"
        except Refused as error:
            if error.kind == "DeviceNotFound":
                return ""
            raise
        with socket.socket(socket.AF_UNIX) as unplugd:
            unplugd.settimeout(SECONDS)
            unplugd.connect(SOCKET.format(domid))
            monitor.execute("getfd", (unplugd.fileno(),), fdname="unplugd")
        monitor.execute("qom-set", path=DEVICE, property="fd", value="unplugd")
        return "got a new connection"
    finally:
        monitor.close()


def main() -> int:
    """Print a line for each domain; 0 or 1."""
    named = [int(word) for word in sys.argv[1:]]
    monitors = Path(MONITOR).parent.glob(Path(MONITOR.format("*")).name)
    found = [int(path.name.rpartition("-")[2]) for path in monitors if re.search(r"-\d+$", path.name)]
    status = 0
    for domid in named or sorted(found):
        try:
            done = pass_socket(domid)
        except (OSError, ValueError, Refused) as error:
            done = f"got no connection: {error}"
            status = 1
        if not done and named:
            done = "has no QEMU with the device `unplugd`"
            status = 1
        if done:
            print(f"domain {domid} {done}")
    return status


if __name__ == "__main__":
    sys.exit(main())
