"""The catalogue of metrics, and the interfaces through which HTTP sees the service and the domains.

The catalogue is data: exposition.py serves it, and scripts/metrics-docs.py generates docs/metrics.md from it; tests
compare both with it. The counters are in core/counters.py. No I/O, no metrics library and no text format here
(exposition.py). Source of names, labels and label values: contract section 4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, Protocol

from unplugd.core.counters import DROPS, KINDS, LOOKUPS, PROTOCOL_ERRORS, Counters
from unplugd.core.protocol import DEVICES, VERDICTS
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
    """More text for the documentation."""

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
        """Whether every domain has its own series of this metric."""
        return self.labels[:1] == ("domid",)


DOMAIN = ("domid", "uuid")

CATALOGUE: tuple[Metric, ...] = (
    Metric("unplugd_build_info", Type.INFO, "The version of unplugd that runs; always 1.", ("version",)),
    Metric("unplugd_xenstore_up", Type.GAUGE, "Whether xenstored is connected: 1 or 0."),
    Metric("unplugd_xenstore_reconnects_total", Type.COUNTER,
           "Reconnects to xenstored after a lost connection."),
    Metric("unplugd_domains", Type.GAUGE, "Guest domains that have an ioreq socket now."),
    Metric("unplugd_connections", Type.GAUGE, "Device model connections that are open now."),
    Metric("unplugd_ioreqs_total", Type.COUNTER, "Frames that device models sent, by kind.",
           ("kind",), {"kind": KINDS},
           "A frame counts once, whatever the number of its elements, and before its response is sent."),
    Metric("unplugd_ioreq_duration_seconds", Type.HISTOGRAM,
           "Time from a frame's arrival to its response.",
           note="Frames that arrive together are timed together. A response that waits for the rate limit"
                " (`log.on_limit = \"delay\"`) or for a blacklist lookup counts with its wait."),
    Metric("unplugd_blacklist_entries", Type.GAUGE,
           "Blacklisted builds in xenstore: nodes /mh/driver-blacklist/PRODUCT/BUILD."),
    Metric("unplugd_blacklist_lookups_total", Type.COUNTER, "Verdicts on build numbers, by result.",
           ("result",), {"result": LOOKUPS},
           "`fallback`: xenstored did not answer in time and `blacklist.on_error` decided, or a domain announced itself"
           " too often and the mirror decided."
           " `reported`: the driver is on the blacklist, with the action `report`."
           " `unknown-product`: the product number has no name, so it cannot be blacklisted."),
    Metric("unplugd_protocol_errors_total", Type.COUNTER,
           "Connections closed because the device model sent an invalid frame.",
           ("reason",), {"reason": PROTOCOL_ERRORS},
           "Any increase is a bug in a device model, or another program uses its socket."),
    Metric("unplugd_denied_connections_total", Type.COUNTER,
           "Connections closed at once: the uid may not connect, a limit is reached, or there is no memory.",
           note="The records `connection-denied` and `connection-limit` show the reason."),
    Metric("unplugd_domain_info", Type.INFO,
           "A domain's name and the PV driver that announced itself; always 1.",
           ("domid", "uuid", "name", "product", "build"),
           note="`product` and `build` are decimal numbers, empty until the driver announces them, and `other`"
                " after 8 changes. Join on `domid` and `uuid` for the name."),
    Metric("unplugd_domain_blacklisted", Type.GAUGE, "Whether the domain's driver is blacklisted: 1 or 0.", DOMAIN),
    Metric("unplugd_domain_verdict", Type.GAUGE, "What became of the domain's driver: 1 for the verdict that holds.",
           (*DOMAIN, "verdict"),
           note="One series a domain, none until a build number was judged. `verdict` is one of "
                + ", ".join(f"`{verdict}`" for verdict in VERDICTS)
                + ". `ignored`: the driver was refused, and devices were unplugged for it all the same. `withheld`: it"
                  " was refused, and got nothing of what it asked for."),
    Metric("unplugd_domain_unplugged", Type.GAUGE,
           "Whether the device class was ordered to be unplugged since the domain's last reset: 1 or 0.",
           (*DOMAIN, "device"), {"device": tuple(DEVICES)}),
    Metric("unplugd_log_lines_total", Type.COUNTER, "Lines of the guest's log that were recorded.", DOMAIN),
    Metric("unplugd_log_bytes_total", Type.COUNTER, "Bytes in the lines that were recorded.", DOMAIN),
    Metric("unplugd_log_dropped_lines_total", Type.COUNTER, "Lines of the guest's log that were dropped.",
           (*DOMAIN, "reason"), {"reason": DROPS},
           "`rate-limit`: the guest was over its limit. `sink`: the journal or the disk did not accept them."),
    Metric("unplugd_log_dropped_bytes_total", Type.COUNTER, "Bytes in the lines that were dropped.",
           (*DOMAIN, "reason"), {"reason": DROPS}),
)  # fmt: skip
"""Every metric except the `process_*` family (process.py)."""


class DomainView(Protocol):
    """A domain as metrics and the API see it. Read at every scrape, on the event loop."""

    @property
    def domid(self) -> int:
        """Never 0."""
    @property
    def uuid(self) -> str:
        """Empty until xenstore has it."""
    @property
    def name(self) -> str:
        """The domain's name, `dom<domid>` until xenstore has one. Any characters: escape it for output."""
    @property
    def product(self) -> int | None:
        """The product number that the driver announced; None before that."""
    @property
    def build(self) -> int | None:
        """The build number that the driver announced; None before that."""
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
    def verdict(self) -> str | None:
        """What became of its driver, one of core.protocol.VERDICTS; None until a build number was judged."""
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
    """The service as metrics, health checks and the API see it."""

    @property
    def version(self) -> str:
        """The version of unplugd."""
    @property
    def domains(self) -> Mapping[int, DomainView]:
        """The domains that are served now, by domid."""
    @property
    def connections(self) -> int:
        """Device model connections that are open."""
    @property
    def lent_pages(self) -> list[int]:
        """The domids whose ioreq page is lent to unplugd (sockets/page.py)."""
    @property
    def xenstore_up(self) -> bool:
        """Whether xenstored is connected."""
    @property
    def blacklist_entries(self) -> int:
        """Nodes PRODUCT/BUILD under /mh/driver-blacklist."""
    @property
    def counters(self) -> Counters:
        """The counters since the process started."""
    @property
    def awaited(self) -> str:
        """What readiness still waits for, as text ("xenstored at /run/xenstored/socket"); empty when ready."""
    @property
    def problem(self) -> str:
        """The journal or disk that accepts nothing now, as text; empty if there is none."""
    @property
    def standing(self) -> ServiceStatus:
        """When the process started, and the configuration in effect."""
    def check_configuration(self) -> Awaitable[Mapping[str, object]]:
        """Whether a reload could read the configuration now, as a JSON object for the API."""
    def denied(self, pid: int, uid: int) -> None:
        """Count and record that this process may not use the control socket."""
    def describe_history(self, domid: int) -> Sequence[Mapping[str, object]]:
        """The last steps of a domain's driver as JSON for the API. Raises KeyError if there is no such domain."""
    def describe(self, domid: int) -> Mapping[str, object]:
        """A domain as a JSON object for the API. Raises KeyError if there is no such domain."""
