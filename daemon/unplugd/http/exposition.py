"""The text of /metrics: Prometheus' text format 0.0.4 and OpenMetrics 1.0, in slices that do not hold the event loop.

prometheus_client writes the metrics of the service. It takes 12 us per line, so the series of the domains are written
here: the counters of a domain are read once and then written metric by metric. metrics.py has the catalogue; client.py
sends the text and lets guests be served between two pieces.

Sources: prometheus.io "Exposition formats"; OpenMetrics 1.0 (github.com/prometheus/OpenMetrics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from unplugd.core.counters import DROPS, DURATION_BOUNDS
from unplugd.core.escape import visible
from unplugd.core.protocol import ALL_DEVICES, DEVICES
from unplugd.http.metrics import CATALOGUE, DomainView, HostView, Metric, Type
from unplugd.http.process import Process, count_descriptors

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

SLICE = 5
"""Domains that are read in one piece of the text."""

WRITTEN = 4 * SLICE
"""Domains of which one metric is written in one piece of the text, which takes no longer."""

_EOF = b"# EOF\n"
_BOUNDS = (*(repr(bound) for bound in DURATION_BOUNDS), "+Inf")


def choose(accept: str) -> str:
    """The best content type for an Accept header: OPENMETRICS or TEXT. TEXT if the client accepts neither."""
    best = {OPENMETRICS: 0.0, TEXT: 0.0}
    for item in accept.split(",", 32)[:32]:
        media, *parameters = (part.strip().lower() for part in item.split(";", 8))
        options = dict(part.split("=", 1) for part in parameters if "=" in part)
        try:
            quality = float(options.get("q", "1"))
        except ValueError:
            continue
        if media == "application/openmetrics-text" and options.get("version", "1.0.0") == "1.0.0":
            best[OPENMETRICS] = max(best[OPENMETRICS], quality)
        elif media in ("text/plain", "text/*", "*/*"):
            best[TEXT] = max(best[TEXT], quality)
    return OPENMETRICS if best[OPENMETRICS] > 0 and best[OPENMETRICS] >= best[TEXT] else TEXT


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def escape(text: str) -> str:
    """A label's value as it stands between its quotes in both formats, with all of it visible (core.escape)."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return visible(text).translate(_ESCAPES)


# --- metrics of the service: by prometheus_client -----------------------------------------------------

_HOST: dict[str, Callable[[HostView], Iterable[tuple[Sequence[str], float]]]] = {
    "unplugd_build_info": lambda host: [([visible(host.version)], 1)],
    "unplugd_xenstore_up": lambda host: [([], host.xenstore_up)],
    "unplugd_xenstore_reconnects_total": lambda host: [([], host.counters.xenstore_reconnects)],
    "unplugd_domains": lambda host: [([], len(host.domains))],
    "unplugd_connections": lambda host: [([], host.connections)],
    "unplugd_ioreqs_total": lambda host: _by_label(host.counters.ioreqs),
    "unplugd_blacklist_entries": lambda host: [([], host.blacklist_entries)],
    "unplugd_blacklist_lookups_total": lambda host: _by_label(host.counters.blacklist_lookups),
    "unplugd_protocol_errors_total": lambda host: _by_label(host.counters.protocol_errors),
    "unplugd_denied_connections_total": lambda host: [([], host.counters.denied_connections)],
}
"""Name of a metric to its series: label values and value. Histograms apart."""


def _by_label(values: dict[str, int]) -> Iterable[tuple[Sequence[str], float]]:
    return [([label], count) for label, count in values.items()]


class _HostCollector(Collector):
    """The host's metrics as prometheus_client's families."""

    def __init__(self, host: HostView) -> None:
        self._host = host

    def collect(self) -> Iterator[Family]:
        for metric in CATALOGUE:
            if not metric.per_domain:
                yield self._family(metric)

    def _family(self, metric: Metric) -> Family:
        if metric.type is Type.HISTOGRAM:
            counters = self._host.counters
            buckets = list(zip(_BOUNDS, accumulate(counters.duration_counts), strict=True))
            return HistogramMetricFamily(metric.family, metric.help, buckets, counters.duration_sum)
        family: CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily
        match metric.type:
            case Type.COUNTER:
                family = CounterMetricFamily(metric.family, metric.help, labels=metric.labels)
            case Type.INFO:
                family = InfoMetricFamily(metric.family, metric.help, labels=metric.labels)
            case Type.GAUGE:
                family = GaugeMetricFamily(metric.family, metric.help, labels=metric.labels)
        for values, value in _HOST[metric.name](self._host):
            if isinstance(family, InfoMetricFamily):
                family.add_metric([], dict(zip(metric.labels, values, strict=True)))
            else:
                family.add_metric(values, value)
        return family


class _Single(Collector):
    """One family, which the library writes quickly."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


def _by_library(collector: Collector, content_type: str) -> bytes:
    # Both generators only call collect(), but one is untyped and the other asks for a registry in older versions.
    generate: Callable[[Collector], bytes] = generate_latest
    if content_type == OPENMETRICS:
        generate = openmetrics.generate_latest
    return generate(cast(CollectorRegistry, collector)).removesuffix(_EOF)


# --- what every domain has ------------------------------------------------------------------------


class _Sample(NamedTuple):
    """What a domain counts at one moment; its labels are escaped."""

    ids: str
    """The labels that identify a domain."""
    driver: str
    """Those of its name and driver."""
    blacklisted: int
    verdict: str | None
    unplugged: int
    lines: int
    size: int
    dropped_lines: tuple[str, int, str, int]
    """For _by_reason(): `ids` and how many, for each of DROPS."""
    dropped_bytes: tuple[str, int, str, int]


def _sample(domain: DomainView) -> _Sample:
    ids = f'domid="{domain.domid}",uuid="{escape(domain.uuid)}"'
    driver = (f'name="{escape(domain.name)}",product="{escape(domain.label_product)}",'
              f'build="{escape(domain.label_build)}"')
    lines, size = domain.dropped_lines, domain.dropped_bytes
    limit, sink = DROPS
    return _Sample(ids, driver, 1 if domain.blacklisted else 0, domain.verdict, domain.unplugged,
                   domain.log_lines, domain.log_bytes,
                   (ids, lines.get(limit, 0), ids, lines.get(sink, 0)),
                   (ids, size.get(limit, 0), ids, size.get(sink, 0)))


def _by_reason(name: str) -> str:
    return "".join([f'{name}{{%s,reason="{reason}"}} %d\n' for reason in DROPS])


_DROPPED_LINES = _by_reason("unplugd_log_dropped_lines_total")
_DROPPED_BYTES = _by_reason("unplugd_log_dropped_bytes_total")

_DOMAIN: dict[str, Callable[[_Sample], str]] = {
    "unplugd_domain_info": lambda it: f"unplugd_domain_info{{{it.ids},{it.driver}}} 1\n",
    "unplugd_domain_blacklisted": lambda it: f"unplugd_domain_blacklisted{{{it.ids}}} {it.blacklisted}\n",
    "unplugd_domain_verdict": lambda it: (
        "" if it.verdict is None else f'unplugd_domain_verdict{{{it.ids},verdict="{it.verdict}"}} 1\n'),
    "unplugd_domain_unplugged": lambda it: _devices(it.ids, it.unplugged),
    "unplugd_log_lines_total": lambda it: f"unplugd_log_lines_total{{{it.ids}}} {it.lines}\n",
    "unplugd_log_bytes_total": lambda it: f"unplugd_log_bytes_total{{{it.ids}}} {it.size}\n",
    "unplugd_log_dropped_lines_total": lambda it: _DROPPED_LINES % it.dropped_lines,
    "unplugd_log_dropped_bytes_total": lambda it: _DROPPED_BYTES % it.dropped_bytes,
}
"""Name of a metric to a domain's lines of it."""


def _devices(ids: str, mask: int) -> str:
    lines = _DEVICE_LINES[mask & ALL_DEVICES]
    return f"{lines[0]}{ids}{lines[1]}{ids}{lines[2]}{ids}{lines[3]}{ids}{lines[4]}"


def _around_ids(mask: int) -> tuple[str, ...]:
    """A domain's lines about its devices, cut at the place of the labels that identify the domain."""
    lines = (
        f'unplugd_domain_unplugged{{\0,device="{device}"}} {1 if mask & bit else 0}\n'
        for device, bit in DEVICES.items()
    )
    return tuple("".join(lines).split("\0"))


_DEVICE_LINES = tuple(_around_ids(mask) for mask in range(ALL_DEVICES + 1))


def _header(metric: Metric, content_type: str) -> str:
    name, kind = metric.name, metric.type.value
    if content_type == OPENMETRICS:
        name = metric.family
    elif metric.type is Type.INFO:
        kind = "gauge"
    return f"# HELP {name} {metric.help}\n# TYPE {name} {kind}\n"


# --- the whole text -------------------------------------------------------------------------------


class Exposition:
    """The text of one service's metrics."""

    def __init__(self, host: HostView) -> None:
        self._host = host
        self._collector = _HostCollector(host)
        self._process = Process()

    def pieces(self, content_type: str) -> Iterator[bytes]:
        """The whole text in small pieces; the caller may serve others between two of them.

        `content_type` is the result of choose(). A piece may be empty. The list of domains is taken after the piece of
        the process. All counters of one domain are read at the same moment.
        """
        for family in self._collector.collect():
            yield _by_library(_Single(family), content_type)
        for count in count_descriptors():
            self._process.open_fds = count
            yield b""
        for family in self._process.collect():
            yield _by_library(_Single(family), content_type)
        domains = list(self._host.domains.values())
        samples: list[_Sample] = []
        for start in range(0, len(domains), SLICE):
            samples += map(_sample, domains[start : start + SLICE])
            yield b""
        for metric in CATALOGUE:
            if not metric.per_domain:
                continue
            head, write = _header(metric, content_type), _DOMAIN[metric.name]
            yield head.encode()
            for start in range(0, len(samples), WRITTEN):
                yield "".join(map(write, samples[start : start + WRITTEN])).encode()
        if content_type == OPENMETRICS:
            yield _EOF
