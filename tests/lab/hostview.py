"""A HostView without a service behind it: what metrics and HTTP are tested on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.lab.control import domain as described
from unplugd.core.counters import DROPS, Counters
from unplugd.core.protocol import DEVICES
from unplugd.core.registry import Registry
from unplugd.host.status import ServiceStatus


@dataclass
class StandInDomain:
    """A domain whose every value is what the test says."""

    domid: int = 7
    uuid: str = "4f0e0c5e-0000-4000-8000-000000000007"
    name: str = "web-01"
    product: int | None = None
    build: int | None = None
    label_product: str = ""
    label_build: str = ""
    blacklisted: bool = False
    verdict: str | None = None
    unplugged: int = 0
    connections: int = 0
    log_lines: int = 0
    log_bytes: int = 0
    dropped_lines: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROPS, 0))
    dropped_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROPS, 0))


class StandInHost:
    """A service with these domains."""

    def __init__(self, domains: Iterable[StandInDomain] = ()) -> None:
        self.version = "0.1.0"
        self.domains: dict[int, StandInDomain] = {domain.domid: domain for domain in domains}
        self.connections = 3
        self.lent_pages: list[int] = []
        self.xenstore_up = True
        self.blacklist_entries = 2
        self.counters = Counters()
        self.awaited = ""
        self.problem = ""
        self.standing = ServiceStatus()
    async def check_configuration(self) -> dict[str, object]:
        """A configuration that is valid."""
        return {"configured": "", "valid": True, "files": []}

    def denied(self, pid: int, uid: int) -> None:
        """Somebody was turned away."""
        self.counters.denied_connections += 1

    def describe_history(self, domid: int) -> list[dict[str, object]]:
        """A driver that did nothing yet."""
        assert domid in self.domains
        return []

    def describe(self, domid: int) -> dict[str, object]:
        domain = self.domains[domid]
        return described(
            domid, domain.name, uuid=domain.uuid, product=domain.product,
            product_name=Registry().name(domain.product), build=domain.build, blacklisted=domain.blacklisted,
            verdict=domain.verdict,
            unplugged=[name for name, bit in DEVICES.items() if domain.unplugged & bit],
            unplugged_mask=domain.unplugged, connections=domain.connections,
            log={"lines": domain.log_lines, "bytes": domain.log_bytes, "dropped_lines": domain.dropped_lines,
                 "dropped_bytes": domain.dropped_bytes},
        )  # fmt: skip


def many(count: int) -> StandInHost:
    """A host with that many domains, each with a product, a build and figures of its own."""
    return StandInHost(
        StandInDomain(
            domid, f"4f0e0c5e-0000-4000-8000-{domid:012}", f"guest-{domid}", 3, 1, "3", "1",
            unplugged=3, connections=2, log_lines=domid, log_bytes=64 * domid,
        )
        for domid in range(1, count + 1)
    )  # fmt: skip
