"""What unplugd shows of itself: the catalogue of metrics, and the views of its state.

The catalogue is data: exposition.py serves it, docs/metrics.md is generated from it (scripts/metrics-docs.py); a test
holds both to it. What is counted is core/counters.py's. No I/O here, no metrics library and no text format
(exposition.py). Source of names, labels and label values: contract section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, Protocol

from unplugd.core.counters import DROPS, KINDS, LOOKUPS, PROTOCOL_ERRORS, Counters
from unplugd.core.protocol import DEVICES
from unplugd.host.status import ServiceStatus


class Type(Enum):
    """Type of a metric, in OpenMetrics' words; an info is a gauge in Prometheus' older text format."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


class Metric(NamedTuple):
    """One metric of the catalogue."""

    name: str
    """As a query spells it, with its suffix (`_total`, `_info`)."""
    type: Type
    help: str
    """One sentence for the HELP line."""
    labels: tuple[str, ...] = ()
    """Names of its labels, in the order in which they are written."""
    values: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Label values that are known beforehand: a series for each exists from the start, at 0."""
    note: str = ""
    """What else a reader of the documentation wants to know."""

    @property
    def family(self) -> str:
        """The name of the OpenMetrics metric family: without the suffix of its type."""
        match self.type:
            case Type.COUNTER:
                return self.name.removesuffix("_total")
            case Type.INFO:
                return self.name.removesuffix("_info")
            case _:
                return self.name

    @property
    def per_domain(self) -> bool:
        """Whether every domain has its own series of it."""
        return self.labels[:1] == ("domid",)


DOMAIN = ("domid", "uuid")

CATALOGUE: tuple[Metric, ...] = (
    Metric("unplugd_build_info", Type.INFO, "The version of unplugd that runs; always 1.", ("version",)),
    Metric("unplugd_xenstore_up", Type.GAUGE, "Whether xenstored is connected: 1 or 0."),
    Metric("unplugd_xenstore_reconnects_total", Type.COUNTER,
           "How often the connection to xenstored was made again after it was lost."),
    Metric("unplugd_domains", Type.GAUGE, "Guest domains that have an ioreq socket now."),
    Metric("unplugd_connections", Type.GAUGE, "Device model connections that are open now."),
    Metric("unplugd_ioreqs_total", Type.COUNTER, "Frames that device models sent, by what they did.",
           ("kind",), {"kind": KINDS},
           "A frame counts once, whatever the number of its elements, and before its response is sent."),
    Metric("unplugd_ioreq_duration_seconds", Type.HISTOGRAM,
           "Time from a frame's arrival to its response.",
           note="Frames that arrive together are timed together. A response that waits for the rate limit"
                " (`log.on_limit = \"delay\"`) or for a blacklist lookup counts with its wait."),
    Metric("unplugd_blacklist_entries", Type.GAUGE,
           "Blacklisted builds in xenstore: nodes /mh/driver-blacklist/PRODUCT/BUILD."),
    Metric("unplugd_blacklist_lookups_total", Type.COUNTER, "Build numbers judged, by the verdict.",
           ("result",), {"result": LOOKUPS},
           "`fallback`: xenstored did not answer in time and `blacklist.on_error` decided, or a domain asked too often"
           " and the mirror decided."
           " `unknown-product`: the product number is in no registry, so it cannot be blacklisted."),
    Metric("unplugd_protocol_errors_total", Type.COUNTER,
           "Connections closed because the device model broke the framing.",
           ("reason",), {"reason": PROTOCOL_ERRORS},
           "Any increase is a bug in a device model or somebody else on its socket."),
    Metric("unplugd_denied_connections_total", Type.COUNTER,
           "Connections closed at once: of a uid that may not connect, over a limit, or without memory for them.",
           note="The records `connection-denied` and `connection-limit` say which."),
    Metric("unplugd_domain_info", Type.INFO,
           "A domain's name and the PV driver that announced itself; always 1.",
           ("domid", "uuid", "name", "product", "build"),
           note="`product` and `build` are the numbers in decimal, empty until the driver says them, and `other`"
                " after 8 changes. Join on `domid` and `uuid` for the name."),
    Metric("unplugd_domain_blacklisted", Type.GAUGE, "Whether the domain's driver is blacklisted: 1 or 0.", DOMAIN),
    Metric("unplugd_domain_unplugged", Type.GAUGE,
           "Whether the device class was ordered to be unplugged since the domain's last reset: 1 or 0.",
           (*DOMAIN, "device"), {"device": tuple(DEVICES)}),
    Metric("unplugd_log_lines_total", Type.COUNTER, "Lines of the guest's log that were recorded.", DOMAIN),
    Metric("unplugd_log_bytes_total", Type.COUNTER, "Bytes in the lines that were recorded.", DOMAIN),
    Metric("unplugd_log_dropped_lines_total", Type.COUNTER, "Lines of the guest's log that were dropped.",
           (*DOMAIN, "reason"), {"reason": DROPS},
           "`rate-limit`: the guest wrote more than its share. `sink`: journal or disk did not take them."),
    Metric("unplugd_log_dropped_bytes_total", Type.COUNTER, "Bytes in the lines that were dropped.",
           (*DOMAIN, "reason"), {"reason": DROPS}),
)  # fmt: skip
"""Every metric but the `process_*` family, which is prometheus_client's own."""


class DomainView(Protocol):
    """What metrics and the API may see of a domain. Read afresh at every scrape, on the event loop."""

    @property
    def domid(self) -> int:
        """Never 0."""
    @property
    def uuid(self) -> str:
        """Empty until xenstore has it."""
    @property
    def name(self) -> str:
        """dom0's name for it, `dom<domid>` until xenstore has one. Any characters: it is escaped where it is shown."""
    @property
    def product(self) -> int | None:
        """The product number the driver gave; None until it did."""
    @property
    def build(self) -> int | None:
        """The build number the driver gave; None until it did."""
    @property
    def label_product(self) -> str:
        """The product number in decimal, empty until known, `other` after too many changes (contract section 4)."""
    @property
    def label_build(self) -> str:
        """As `label_product`, for the build number."""
    @property
    def blacklisted(self) -> bool:
        """The verdict on its driver, until reset."""
    @property
    def unplugged(self) -> int:
        """Mask of all that was ordered since the last reset (core.protocol.Unplug)."""
    @property
    def connections(self) -> int:
        """Device model connections that are open."""
    @property
    def log_lines(self) -> int:
        """Lines recorded."""
    @property
    def log_bytes(self) -> int:
        """Bytes in the lines recorded."""
    @property
    def dropped_lines(self) -> Mapping[str, int]:
        """By reason, one of DROPS; a reason that is absent is 0."""
    @property
    def dropped_bytes(self) -> Mapping[str, int]:
        """As `dropped_lines`, in bytes."""


class HostView(Protocol):
    """What metrics, health checks and the API may see of the service."""

    @property
    def version(self) -> str:
        """unplugd's own."""
    @property
    def domains(self) -> Mapping[int, DomainView]:
        """The domains that are served now, by domid."""
    @property
    def connections(self) -> int:
        """Device model connections that are open."""
    @property
    def lent_pages(self) -> list[int]:
        """The domains whose accesses come from Xen itself (sockets/page.py)."""
    @property
    def xenstore_up(self) -> bool:
        """Whether xenstored is connected."""
    @property
    def blacklist_entries(self) -> int:
        """Nodes PRODUCT/BUILD under /mh/driver-blacklist."""
    @property
    def counters(self) -> Counters:
        """What was counted since the process began."""
    @property
    def awaited(self) -> str:
        """What readiness still waits for, for people ("xenstored at /run/xenstored/socket"); empty when ready."""
    @property
    def problem(self) -> str:
        """What a journal or a disk does not take now, for people; empty when all is well."""
    @property
    def standing(self) -> ServiceStatus:
        """Since when the process runs, and which configuration holds."""
    def describe_history(self, domid: int) -> Sequence[Mapping[str, object]]:
        """The last steps of a domain's driver as the API's JSON; KeyError if it is not there."""
    def describe(self, domid: int) -> Mapping[str, object]:
        """A domain as the API's JSON object; KeyError if it is not there."""
