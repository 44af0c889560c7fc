"""Two hosts with guests, and one Prometheus that scrapes them with the rules of config/prometheus.

    with running(directory) as fleet:
        fleet.hosts["b"]                                # "127.0.0.1:PORT", the label `instance`
        fleet.prometheus.query("unplugd:drivers:count")

Host a has a blacklisted guest, one that floods its log and one that is well; b has two that are well, knows fewer
blacklisted builds, and had a device model that broke the protocol. Every panel of the dashboard has something to show.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.lab.daemon import Daemon, Run, Wire, embedded, eventually, uuid
from tests.lab.daemon import running as daemons
from tests.lab.frames import frame
from tests.lab.prometheus import Prometheus

RULES = Path(__file__).parents[2] / "config" / "prometheus" / "unplugd.rules.yml"

CITRIX, XENSERVER, LINUX = 1, 2, 3
"""Product numbers of the registry, as the guests of this fleet have them."""
BAD = 86451
"""The build that all of these hosts blacklist."""
SUSPECT = 86460
"""A build that one host only reports."""
OBSERVED = {"product": "xensource-windows", "from": SUSPECT, "to": SUSPECT, "action": "report"}


class Fleet:
    """The hosts by letter, and what sees them."""

    def __init__(self, hosts: Mapping[str, Daemon], prometheus: Prometheus) -> None:
        self.daemons = hosts
        self.hosts = {name: f"127.0.0.1:{daemon.port}" for name, daemon in hosts.items()}
        self.prometheus = prometheus


def blacklist(*builds: int) -> dict[str, Any]:
    """Configuration that blacklists these builds of the first Windows driver."""
    return {"entry": [{"product": "xensource-windows", "build": build, "reason": "a test"} for build in builds]}


def _start(run: Run, config: dict[str, Any]) -> Daemon:
    daemon = run(config)
    daemon.stop()
    daemon.listen()
    return daemon.start()


def _well(wire: Wire, product: int, build: int) -> None:
    assert wire.read(0x10, 2) == 0x49D2
    wire.announce(product, build)
    assert wire.write(0x10, 2, 3) == 3
    wire.log(b"disk and network are paravirtual now\n")


class _Flood:
    """A guest that logs more than it may for as long as the fleet stands, as several do at once in a real one."""

    def __init__(self, daemon: Daemon, domid: int) -> None:
        self._wire = daemon.connect(domid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._over.wait(0.2):
            self._wire.log(b"a line of a guest that does not stop writing\n" * 40)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._wire.close()


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Fleet]:
    """The fleet, scraped often enough that rates can be told."""
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(daemons())
        limits = {"rate": 256, "burst": 8192}
        hosts = {
            "a": _start(run, embedded(7, 8, 9, blacklist=blacklist(BAD, 86452, 86453), log=limits)),
            "b": _start(run, embedded(7, 8, 9, 10, blacklist=blacklist(BAD) | {"range": [OBSERVED]})),
        }
        prometheus = Prometheus(directory, *(daemon.port for daemon in hosts.values()), rules=[RULES])
        prometheus.start()
        stack.callback(prometheus.stop)
        wires = {(host, domid): stack.enter_context(hosts[host].connect(domid))
                 for host, domid in (("a", 7), ("a", 8), ("b", 7), ("b", 8), ("b", 9), ("b", 10))}  # fmt: skip
        flood = _Flood(hosts["a"], 9)
        stack.callback(flood.stop)
        # seen at rest first: what happens then is an increase
        prometheus.wait_for(lambda: prometheus.value("sum(unplugd_domains)") == 7, "all guests to be seen")
        assert wires["a", 7].announce(CITRIX, BAD) == 0xD249
        _well(wires["a", 8], LINUX, 1)
        _well(wires["b", 7], LINUX, 1)
        _well(wires["b", 8], XENSERVER, 0x90002)
        _well(wires["b", 9], CITRIX, SUSPECT)
        assert wires["b", 10].announce(CITRIX, BAD) == 0xD249
        assert wires["b", 10].write(0x10, 2, 3) == 3
        with hosts["b"].connect(7) as broken:
            broken.send(frame(kind=9))
            assert broken.take(1) == b""
        dropped = {"domid": 9, "uuid": uuid(9), "reason": "rate-limit"}
        eventually(lambda: (hosts["a"].value("unplugd_log_dropped_lines_total", **dropped) or 0) > 0)
        yield Fleet(hosts, prometheus)
