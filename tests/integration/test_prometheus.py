"""A real Prometheus scrapes unplugd, and its own linter finds nothing to say."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tests.lab.hostview import StandInDomain, StandInHost, many
from tests.lab.prometheus import PATIENCE, Prometheus, lint
from unplugd.core.counters import KINDS
from unplugd.core.escape import visible
from unplugd.http.exposition import OPENMETRICS, TEXT
from unplugd.http.server import HttpServer

UUID = "4f0e0c5e-0000-4000-8000-000000000007"


class Running:
    """An HttpServer on a loop of its own, in a thread, while the test talks to Prometheus."""

    def __init__(self, host: StandInHost) -> None:
        self.host = host
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server = HttpServer(host)
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._server.start_tcp("127.0.0.1", 0), self._loop)
        _, self.port = starting.result(PATIENCE)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def change(self, change: Callable[[], object]) -> None:
        """Changes the host on the server's own loop, as the service does."""
        self._loop.call_soon_threadsafe(change)

    def scrape(self, accept: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.headers["Content-Type"] == accept
            return bytes(answer.read())


@pytest.fixture
def serve() -> Iterator[Callable[[StandInHost], Running]]:
    """`serve(host)` is a running server."""
    started: list[Running] = []

    def start(host: StandInHost) -> Running:
        running = Running(host)
        running.start()
        started.append(running)
        return running

    yield start
    for running in started:
        running.stop()


Serve = Callable[[StandInHost], Running]
Scrape = Callable[[int], Prometheus]


def test_promtool_finds_nothing_to_say(serve: Serve) -> None:
    nasty = StandInDomain(8, name='a "quoted"\n\\ name \x00\udc80\r\u2028')
    running = serve(StandInHost([StandInDomain(label_product="3", label_build="1"), nasty]))
    assert lint(running.scrape(TEXT)) == ""


def test_prometheus_sees_what_happens(serve: Serve, prometheus: Scrape) -> None:
    host = StandInHost([StandInDomain()])
    running = serve(host)
    server = prometheus(running.port)
    domain = host.domains[7]

    server.wait_for_value('up{job="unplugd"}', 1)
    server.wait_for_value("unplugd_domains", 1)
    server.wait_for_value('unplugd_ioreqs_total{kind="build"}', 0)
    server.wait_for_value(f'unplugd_domain_blacklisted{{domid="7",uuid="{UUID}"}}', 0)
    assert server.value('unplugd_build_info{version="0.1.0"}') == 1

    def announce() -> None:
        host.counters.frames[KINDS.index("build")] += 1
        host.counters.blacklist_lookups["blacklisted"] += 1
        host.counters.observe(30e-6)
        domain.product, domain.build, domain.blacklisted = 1, 86451, True
        domain.label_product, domain.label_build = "1", "86451"

    running.change(announce)
    server.wait_for_value('unplugd_domain_blacklisted{domid="7"}', 1)
    server.wait_for_value('unplugd_domain_info{name="web-01",product="1",build="86451"}', 1)
    assert server.value('unplugd_ioreqs_total{kind="build"}') == 1
    assert server.value('unplugd_ioreq_duration_seconds_bucket{le="2.5e-05"}') == 0
    assert server.value('unplugd_ioreq_duration_seconds_bucket{le="5e-05"}') == 1
    # The join that docs/metrics.md recommends.
    ((labels, _),) = server.query("unplugd_domain_blacklisted * on (domid, uuid) group_left (name) unplugd_domain_info")
    assert labels["name"] == "web-01"

    running.change(host.domains.clear)
    server.wait_for_value('unplugd_domain_blacklisted{domid="7"}', None)
    server.wait_for_value("unplugd_domains", 0)
    assert server.target_error() == ""


def test_prometheus_knows_the_types(serve: Serve, prometheus: Scrape) -> None:
    server = prometheus(serve(StandInHost([StandInDomain()])).port)
    server.wait_for_value("unplugd_domains", 1)
    types = {name: entries[0]["type"] for name, entries in server.api("metadata").items()}
    assert types["unplugd_ioreq_duration_seconds"] == "histogram"
    assert types["unplugd_xenstore_up"] == "gauge"
    # It asked for OpenMetrics, and names families as that does.
    assert types["unplugd_log_lines"] == "counter"
    assert types["unplugd_domain"] == "info"


NASTY = [
    'x"} 1\nunplugd_xenstore_up 7\n', "\\", "trailing\\", "\t\r\x01\x1f\x7f\x85", "a\x00b", "caf\u00e9 \U0001f427",
    "caf\udce9", "\u2028\u2029\ufeff", "{}=,# EOF", "\n# EOF\n", "",
]  # fmt: skip


def test_no_name_spoils_a_scrape_and_each_can_be_looked_at(serve: Serve, prometheus: Scrape) -> None:
    running = serve(StandInHost(StandInDomain(domid, name=name) for domid, name in enumerate(NASTY, 1)))
    server = prometheus(running.port)
    server.wait_for_value("unplugd_domains", len(NASTY))
    assert server.target_error() == ""
    seen = {labels["domid"]: labels.get("name", "") for labels, _ in server.query("unplugd_domain_info")}
    expected = {str(domid): visible(name) for domid, name in enumerate(NASTY, 1)}
    assert expected["1"] == 'x"} 1\\x0aunplugd_xenstore_up 7\\x0a'
    assert expected["6"] == NASTY[5]
    assert seen == expected
    assert server.value("unplugd_xenstore_up") == 1


def test_a_thousand_domains_are_scraped_in_time(serve: Serve, prometheus: Scrape) -> None:
    server = prometheus(serve(many(1000)).port)
    server.wait_for_value("count(unplugd_domain_info)", 1000)
    server.wait_for_value("count(unplugd_log_dropped_bytes_total)", 2000)
    assert server.target_error() == ""


def test_both_formats_are_served_by_name(serve: Serve) -> None:
    running = serve(StandInHost())
    assert running.scrape(OPENMETRICS).endswith(b"# EOF\n")
    assert b"# EOF" not in running.scrape(TEXT)
