"""The text of /metrics, read back by prometheus_client's own parsers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.lab.hostview import StandInDomain, StandInHost, many
from unplugd.core.counters import DURATION_BOUNDS, KINDS
from unplugd.core.escape import visible
from unplugd.http.exposition import OPENMETRICS, SLICE, TEXT, Exposition, choose
from unplugd.http.metrics import CATALOGUE

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

BOTH = pytest.mark.parametrize("content_type", [TEXT, OPENMETRICS])


def text_of(host: StandInHost, content_type: str) -> str:
    return b"".join(Exposition(host).pieces(content_type)).decode()


def parse(text: str, content_type: str) -> Series:
    """Every series of a text: name and labels to value. Fails if one comes twice."""
    series: Series = {}
    families: Iterable[object] = (parse_openmetrics if content_type == OPENMETRICS else parse_text)(text)
    for family in families:
        for sample in family.samples:  # type: ignore[attr-defined] # its types do not say so
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in series
            series[key] = sample.value
    return series


def read(host: StandInHost, content_type: str) -> Series:
    return parse(text_of(host, content_type), content_type)


def at(series: Series, name: str, /, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


DOMAIN = {"domid": "7", "uuid": "4f0e0c5e-0000-4000-8000-000000000007"}


@BOTH
def test_all_series_are_there_at_zero_before_anything_happens(content_type: str) -> None:
    host = StandInHost([StandInDomain()])
    series = read(host, content_type)
    for metric in CATALOGUE:
        for label, values in metric.values.items():
            for value in values:
                ids = DOMAIN if metric.per_domain else {}
                assert at(series, metric.name, **ids, **{label: value}) == 0
    for name in ("unplugd_xenstore_reconnects_total", "unplugd_denied_connections_total"):
        assert at(series, name) == 0
    for name in ("unplugd_domain_blacklisted", "unplugd_log_lines_total", "unplugd_log_bytes_total"):
        assert at(series, name, **DOMAIN) == 0
    assert at(series, "unplugd_domain_info", **DOMAIN, name="web-01", product="", build="") == 1


@BOTH
def test_every_metric_of_the_catalogue_and_the_process_is_served(content_type: str) -> None:
    served = names(read(StandInHost([StandInDomain(verdict="allowed")]), content_type))
    histogram = {f"unplugd_ioreq_duration_seconds{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    expected = {metric.name for metric in CATALOGUE} - {"unplugd_ioreq_duration_seconds"} | histogram
    assert {name for name in served if not name.startswith("process_")} == expected
    assert {
        "process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes",
        "process_start_time_seconds", "process_open_fds", "process_max_fds",
    } <= served  # fmt: skip


@BOTH
def test_what_is_counted_is_what_is_read(content_type: str) -> None:
    host = StandInHost([
        StandInDomain(
            product=3, build=1, label_product="3", label_build="1", blacklisted=True, unplugged=9,
            log_lines=5, log_bytes=500, dropped_lines={"sink": 2}, dropped_bytes={"rate-limit": 70, "sink": 20},
        )
    ])  # fmt: skip
    host.counters.frames[KINDS.index("magic")] += 2
    host.counters.blacklist_lookups["unknown-product"] += 1
    host.counters.protocol_errors["bad-size"] += 4
    host.counters.denied_connections += 6
    host.counters.xenstore_reconnects += 7
    host.xenstore_up = False
    series = read(host, content_type)
    assert at(series, "unplugd_build_info", version="0.1.0") == 1
    assert at(series, "unplugd_xenstore_up") == 0
    assert at(series, "unplugd_xenstore_reconnects_total") == 7
    assert at(series, "unplugd_domains") == 1
    assert at(series, "unplugd_connections") == 3
    assert at(series, "unplugd_ioreqs_total", kind="magic") == 2
    assert at(series, "unplugd_ioreqs_total", kind="log") == 0
    assert at(series, "unplugd_blacklist_entries") == 2
    assert at(series, "unplugd_blacklist_lookups_total", result="unknown-product") == 1
    assert at(series, "unplugd_protocol_errors_total", reason="bad-size") == 4
    assert at(series, "unplugd_denied_connections_total") == 6
    assert at(series, "unplugd_domain_info", **DOMAIN, name="web-01", product="3", build="1") == 1
    assert at(series, "unplugd_domain_blacklisted", **DOMAIN) == 1
    unplugged = ("ide-disks", "nics", "aux-ide-disks", "nvme-disks")
    assert [at(series, "unplugd_domain_unplugged", **DOMAIN, device=device) for device in unplugged] == [1, 0, 0, 1]
    assert at(series, "unplugd_log_lines_total", **DOMAIN) == 5
    assert at(series, "unplugd_log_bytes_total", **DOMAIN) == 500
    assert at(series, "unplugd_log_dropped_lines_total", **DOMAIN, reason="rate-limit") == 0
    assert at(series, "unplugd_log_dropped_lines_total", **DOMAIN, reason="sink") == 2
    assert at(series, "unplugd_log_dropped_bytes_total", **DOMAIN, reason="rate-limit") == 70


@BOTH
def test_the_histogram_is_cumulated(content_type: str) -> None:
    host = StandInHost()
    for _ in range(3):
        host.counters.observe(20e-6)
    host.counters.observe(0.75)
    host.counters.observe(4.0)
    series = read(host, content_type)
    bounds = [str(bound) for bound in DURATION_BOUNDS]
    counts = [at(series, "unplugd_ioreq_duration_seconds_bucket", le=bound) for bound in (*bounds, "+Inf")]
    assert counts == [0, *[3] * 14, 4, 5]
    assert at(series, "unplugd_ioreq_duration_seconds_count") == 5
    assert at(series, "unplugd_ioreq_duration_seconds_sum") == pytest.approx(4.75006)


@BOTH
def test_a_released_domain_is_gone_at_the_next_scrape(content_type: str) -> None:
    host = many(3)
    del host.domains[2]
    assert {dict(labels)["domid"] for name, labels in read(host, content_type) if name.startswith("unplugd_log")} == {
        "1", "3",
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize("count", [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 1])
def test_slices_neither_lose_nor_repeat_a_domain(count: int, content_type: str) -> None:
    series = read(many(count), content_type)
    infos = [labels for name, labels in series if name == "unplugd_domain_info"]
    assert len(infos) == count
    assert len([name for name, labels in series if dict(labels).get("domid")]) == 12 * count


@BOTH
def test_a_domain_that_goes_in_the_middle_of_a_scrape_does_no_harm(content_type: str) -> None:
    host = many(3)
    pieces = Exposition(host).pieces(content_type)
    text = b"".join(next(pieces) for _ in range(6))
    host.domains.clear()
    parse((text + b"".join(pieces)).decode(), content_type)


NASTY = '\\"\n\r\t\x00{},=# n\udc80é\u2028'
hostile = st.text(alphabet=st.characters(), max_size=40) | st.text(alphabet=NASTY, max_size=20)


@BOTH
@given(name=hostile, uuid=hostile)
@example(name='a"} 1\nunplugd_xenstore_up 7\n', uuid="\\")
@example(name="\\n", uuid="\n")
@example(name="caf\udce9", uuid="")
@example(name="\x1b[2J\u009b\u202e\u3164", uuid="")
def test_any_name_is_read_back_as_it_is_shown(content_type: str, name: str, uuid: str) -> None:
    series = read(StandInHost([StandInDomain(name=name, uuid=uuid)]), content_type)
    (labels,) = (dict(labels) for series_name, labels in series if series_name == "unplugd_domain_info")
    assert labels["name"] == visible(name)
    assert labels["uuid"] == visible(uuid)
    assert at(series, "unplugd_xenstore_up") == 1


def test_openmetrics_ends_with_its_mark_and_text_does_not() -> None:
    assert text_of(StandInHost(), OPENMETRICS).endswith("\n# EOF\n")
    assert text_of(StandInHost(), OPENMETRICS).count("# EOF") == 1
    assert "# EOF" not in text_of(StandInHost(), TEXT)


def test_types_are_named_as_each_format_does() -> None:
    assert "# TYPE unplugd_domain_info gauge\n" in text_of(StandInHost(), TEXT)
    assert "# TYPE unplugd_log_lines_total counter\n" in text_of(StandInHost(), TEXT)
    assert "# TYPE unplugd_domain info\n" in text_of(StandInHost(), OPENMETRICS)
    assert "# TYPE unplugd_log_lines counter\n" in text_of(StandInHost(), OPENMETRICS)


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("text/plain", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=high", TEXT),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.5", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(accept: str, expected: str) -> None:
    assert choose(accept) == expected


@given(st.text(alphabet="aptex/lin;=,q.01 \xff*openmetrics-", max_size=200))
def test_any_accept_header_gets_an_answer(accept: str) -> None:
    assert choose(accept) in (TEXT, OPENMETRICS)
