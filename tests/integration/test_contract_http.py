"""Contract section 4: what monitoring and tools see of the running daemon, a real Prometheus among them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.openmetrics import parser

from tests.lab.daemon import Daemon, Run, embedded, eventually, merged, running, uuid
from tests.lab.frames import frame
from tests.lab.prometheus import Prometheus, lint

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
LABELS: dict[str, set[str]] = {
    "unplugd_build_info": {"version"},
    "unplugd_xenstore_up": set(),
    "unplugd_xenstore_reconnects_total": set(),
    "unplugd_domains": set(),
    "unplugd_connections": set(),
    "unplugd_domain_info": {"domid", "uuid", "name", "product", "build"},
    "unplugd_domain_blacklisted": {"domid", "uuid"},
    "unplugd_domain_verdict": {"domid", "uuid", "verdict"},
    "unplugd_domain_unplugged": {"domid", "uuid", "device"},
    "unplugd_ioreqs_total": {"kind"},
    "unplugd_ioreq_duration_seconds_bucket": {"le"},
    "unplugd_ioreq_duration_seconds_sum": set(),
    "unplugd_ioreq_duration_seconds_count": set(),
    "unplugd_blacklist_entries": set(),
    "unplugd_blacklist_lookups_total": {"result"},
    "unplugd_log_lines_total": {"domid", "uuid"},
    "unplugd_log_bytes_total": {"domid", "uuid"},
    "unplugd_log_dropped_lines_total": {"domid", "uuid", "reason"},
    "unplugd_log_dropped_bytes_total": {"domid", "uuid", "reason"},
    "unplugd_denied_connections_total": set(),
}
VALUES: dict[tuple[str, str], set[str]] = {
    ("unplugd_ioreqs_total", "kind"): {
        "magic", "version", "product", "build", "unplug", "log", "flags", "other", "reset",
    },
    ("unplugd_blacklist_lookups_total", "result"): {
        "allowed", "blacklisted", "reported", "unknown-product", "fallback",
    },
    ("unplugd_domain_unplugged", "device"): {"ide-disks", "nics", "aux-ide-disks", "nvme-disks"},
    ("unplugd_log_dropped_lines_total", "reason"): {"rate-limit", "sink"},
    ("unplugd_log_dropped_bytes_total", "reason"): {"rate-limit", "sink"},
}  # fmt: skip
NASTY = 'a "quoted" \\ <script>alert(1)</script> ü'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with a TCP listener and a dozen domains."""
    with running() as run:
        config = embedded(*range(1, 13))
        config["xenstore"]["domain"][11]["name"] = NASTY
        bare = Daemon({})
        bare.listen()
        listen = bare.config["http"]
        bare.close()
        started = run(merged(config, {"http": listen}))
        started.port = bare.port
        yield started


def test_routes(daemon: Daemon) -> None:
    for path in ("/metrics", "/-/healthy", "/-/ready", "/"):
        for tcp in (True, False):
            assert daemon.get(path, tcp=tcp)[0] == 200, (path, tcp)
            status, headers, body = daemon.get(path, tcp=tcp, method="HEAD")
            assert (status, body) == (200, b""), (path, headers)
    for path in ("/api/v1/domains", "/api/v1/domains/7"):
        assert daemon.get(path)[0] == 200
        assert daemon.get(path)[1].get_content_type() == "application/json"
        assert daemon.get(path, tcp=True)[0] == 404
    for path in ("/api/v1/domains/99", "/api/v1/domains/x", "/api/v1/domains/0", "/nothing", "/metrics/x"):
        assert daemon.get(path)[0] == 404
    for tcp in (True, False):
        assert daemon.get("/metrics", tcp=tcp, method="POST")[0] == 405


def test_the_landing_page_escapes(daemon: Daemon) -> None:
    for tcp in (True, False):
        _, headers, body = daemon.get("/", tcp=tcp)
        assert headers.get_content_type() == "text/html"
        assert b"<script>alert" not in body


def test_the_api(daemon: Daemon) -> None:
    with daemon.connect(1) as wire:
        wire.announce(3, 1)
        wire.write(0x10, 2, 5)
        domains = json.loads(daemon.get("/api/v1/domains")[2])
        found = domains["domains"] if isinstance(domains, dict) else domains
        assert [each["domid"] for each in found] == list(range(1, 13))
        (own,) = (each for each in found if each["domid"] == 1)
        alone = daemon.domain(1)
        assert alone is not None
        assert [step["did"] for step in alone.pop("history")] == ["product", "build", "magic", "unplug"]
        assert own == alone
        assert (own["name"], own["uuid"], own["product"], own["build"]) == ("vm1", uuid(1), 3, 1)
        assert (own["blacklisted"], own["unplugged_mask"], own["connections"]) == (False, 5, 1)
        assert found[11]["name"] == NASTY


def test_names_labels_and_their_values(daemon: Daemon) -> None:
    seen: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for name, labels in daemon.metrics():
        seen.setdefault(name, set()).update(key for key, _ in labels)
        for key, value in labels:
            values.setdefault((name, key), set()).add(value)
    for name, expected in LABELS.items():
        assert seen.get(name) == expected, name
    for place, allowed in VALUES.items():
        assert values[place] == allowed, place
    assert NASTY in values["unplugd_domain_info", "name"]
    families = {"unplugd_protocol_errors_total", *LABELS}
    assert {name for name in seen if not name.startswith("process_")} <= families
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert name in seen


def test_the_histogram(daemon: Daemon) -> None:
    with daemon.connect(2) as wire:
        for _ in range(50):
            wire.read(0x10, 2)
    buckets = {
        float(dict(labels)["le"]): value
        for labels, value in daemon.samples("unplugd_ioreq_duration_seconds_bucket").items()
    }
    bounds = sorted(buckets)
    assert (bounds[0], bounds[-2], bounds[-1]) == (1e-5, 1.0, float("inf"))
    assert [buckets[bound] for bound in bounds] == sorted(buckets.values())
    assert buckets[bounds[-1]] == daemon.value("unplugd_ioreq_duration_seconds_count")
    assert buckets[bounds[-1]] >= 50


def test_a_domains_series_before_and_after(daemon: Daemon) -> None:
    labels = {"domid": 3, "uuid": uuid(3)}
    assert daemon.value("unplugd_domain_info", name="vm3", product="", build="", **labels) == 1
    assert daemon.value("unplugd_domain_blacklisted", **labels) == 0
    assert daemon.value("unplugd_log_lines_total", **labels) == 0
    with daemon.connect(3) as wire:
        wire.announce(0xFFFF, 0xFFFFFFFF)
        assert daemon.value("unplugd_domain_info", name="vm3", product=65535, build=4294967295, **labels) == 1
        assert daemon.value("unplugd_domain_info", name="vm3", product="", build="", **labels) is None
        assert wire.write(0x10, 2, 12) == 12
        for device, value in {"ide-disks": 0, "nics": 0, "aux-ide-disks": 1, "nvme-disks": 1}.items():
            assert daemon.value("unplugd_domain_unplugged", device=device, **labels) == value
        wire.reset()
        assert daemon.value("unplugd_domain_unplugged", device="nvme-disks", **labels) == 0
        assert daemon.value("unplugd_domain_info", name="vm3", product="", build="", **labels) == 1


def test_product_and_build_labels_change_8_times(daemon: Daemon) -> None:
    def label() -> tuple[str, str]:
        (found,) = (
            dict(labels) for labels in daemon.samples("unplugd_domain_info") if dict(labels)["domid"] == "4"
        )
        return found["product"], found["build"]

    with daemon.connect(4) as wire:
        wire.announce(3, 1)
        seen = [label()]
        for build in range(2, 30):
            wire.write(0x10, 4, build)
            seen.append(label())
        assert seen[:8] == [("3", str(build)) for build in range(1, 9)]
        assert set(seen[8:]) == {("other", "other")}
        wire.reset()
        wire.announce(3, 1)
        assert label() == ("other", "other")
        assert (daemon.domain(4) or {})["build"] == 1


def test_guest_text_is_no_label(daemon: Daemon) -> None:
    with daemon.connect(5) as wire:
        wire.log(b"evil_text_of_a_guest\n")
    eventually(lambda: daemon.guest_lines("vm5"))
    assert b"evil_text" not in daemon.get("/metrics")[2]


def test_connections_are_counted(daemon: Daemon) -> None:
    before = daemon.value("unplugd_connections")
    assert before is not None
    with daemon.connect(6) as wire, daemon.connect(6) as other:
        wire.read(0x10, 2)
        other.read(0x10, 2)
        assert daemon.value("unplugd_connections") == before + 2
    eventually(lambda: daemon.value("unplugd_connections"), lambda count: count == before)


def test_openmetrics(daemon: Daemon) -> None:
    _, headers, body = daemon.get("/metrics", accept=OPENMETRICS)
    assert headers.get_content_type() == "application/openmetrics-text"
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}  # type: ignore[no-untyped-call] # has no types
    assert families["unplugd_ioreqs"].type == "counter"
    assert {sample.name for sample in families["unplugd_ioreqs"].samples} == {"unplugd_ioreqs_total"}
    _, headers, _ = daemon.get("/metrics")
    assert headers.get_content_type() == "text/plain"


def test_clients_that_say_nothing_keep_nobody_out(daemon: Daemon) -> None:
    idle = []
    try:
        for _ in range(100):
            idle.append(socket.create_connection(("127.0.0.1", daemon.port), timeout=30))
            idle[-1].sendall(b"GET /metrics HTTP/1.1\r\n")
        assert daemon.get("/metrics", tcp=True)[0] == 200
        with daemon.connect(7) as wire:
            assert wire.read(0x10, 2) == 0x49D2
    finally:
        for each in idle:
            each.close()


def test_a_scraper_that_does_not_read_holds_nobody_up(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        with daemon.connect(8) as wire:
            for _ in range(100):
                assert wire.read(0x10, 2) == 0x49D2
        assert daemon.get("/-/healthy", tcp=True)[0] == 200


def test_counters_start_at_0_with_the_process(run: Run) -> None:
    daemon = run(embedded(7))
    with daemon.connect(7) as wire:
        wire.announce(3, 1)
        wire.log(b"one\n")
        wire.send(frame(state=9))
        assert wire.take(1) == b""
    daemon.kill()
    daemon.start()
    for name in ("unplugd_ioreqs_total", "unplugd_protocol_errors_total", "unplugd_log_lines_total"):
        assert daemon.total(name) == 0, name


def test_listen_empty_is_off_and_ipv6(run: Run) -> None:
    daemon = run(embedded(7))
    daemon.listen()
    off = daemon.port
    daemon.configure({"http": {"listen": ""}})
    with pytest.raises(ConnectionRefusedError):
        daemon.get("/metrics", tcp=True)
    daemon.configure({"http": {"listen": f"127.0.0.1:{off}"}})
    daemon.reload()
    assert daemon.get("/metrics", tcp=True)[0] == 200
    daemon.configure({"http": {"listen": ""}})
    daemon.reload()
    with pytest.raises(ConnectionRefusedError):
        daemon.get("/metrics", tcp=True)


def test_promtool_has_nothing_to_say(daemon: Daemon) -> None:
    assert lint(daemon.get("/metrics", tcp=True)[2]) == ""


def test_a_real_prometheus_scrapes_it(run: Run, prometheus: Callable[[int], Prometheus]) -> None:
    entries = [{"product": "xensource-windows", "build": 86451}]
    daemon = Daemon(embedded(7, 8, blacklist={"entry": entries}))
    try:
        daemon.listen()
        daemon.start()
        with daemon.connect(7) as wire, daemon.connect(8) as other:
            server = prometheus(daemon.port)
            server.wait_for_value('unplugd_domain_blacklisted{domid="7"}', 0)
            wire.announce(1, 86451)
            for _ in range(3):
                other.write(0x10, 2, 3)
            wire.log(b"a line\n")
            server.wait_for_value('unplugd_domain_blacklisted{domid="7"}', 1)
            server.wait_for_value('unplugd_ioreqs_total{kind="unplug"}', 3)
            server.wait_for_value('unplugd_log_bytes_total{domid="7"}', 6)
            join = "unplugd_domain_blacklisted * on(domid, uuid) group_left(name, build) unplugd_domain_info"
            server.wait_for(
                lambda: {"vm7": 1.0}.items()
                <= {labels["name"]: value for labels, value in server.query(join)}.items(),
                "the join with domain_info",
            )
            assert server.target_error() == ""
            domains = [each for each in daemon.config["xenstore"]["domain"] if each["domid"] != 7]
            daemon.configure({"xenstore": {"domain": domains}})
            daemon.reload()
            begin = time.monotonic()
            server.wait_for_value('unplugd_domain_blacklisted{domid="7"}', None)
            assert time.monotonic() - begin < 30
    finally:
        daemon.close()
