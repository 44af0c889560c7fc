"""The catalogue against the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab.hostview import StandInDomain, StandInHost
from unplugd.core.protocol import DEVICES
from unplugd.http.metrics import CATALOGUE, DomainView, HostView, Type

ROOT = Path(__file__).resolve().parents[2]

CONTRACT = {
    "unplugd_build_info": ("version",),
    "unplugd_xenstore_up": (),
    "unplugd_xenstore_reconnects_total": (),
    "unplugd_domains": (),
    "unplugd_connections": (),
    "unplugd_domain_info": ("domid", "uuid", "name", "product", "build"),
    "unplugd_domain_blacklisted": ("domid", "uuid"),
    "unplugd_domain_verdict": ("domid", "uuid", "verdict"),
    "unplugd_domain_unplugged": ("domid", "uuid", "device"),
    "unplugd_ioreqs_total": ("kind",),
    "unplugd_ioreq_duration_seconds": (),
    "unplugd_blacklist_entries": (),
    "unplugd_blacklist_lookups_total": ("result",),
    "unplugd_log_lines_total": ("domid", "uuid"),
    "unplugd_log_bytes_total": ("domid", "uuid"),
    "unplugd_log_dropped_lines_total": ("domid", "uuid", "reason"),
    "unplugd_log_dropped_bytes_total": ("domid", "uuid", "reason"),
    "unplugd_protocol_errors_total": ("reason",),
    "unplugd_denied_connections_total": (),
}


def test_the_catalogue_is_the_contract_s() -> None:
    assert {metric.name: metric.labels for metric in CATALOGUE} == CONTRACT
    assert len(CATALOGUE) == len(CONTRACT)


def test_counters_end_in_total_and_nothing_else_does() -> None:
    assert all(metric.name.endswith("_total") is (metric.type is Type.COUNTER) for metric in CATALOGUE)
    assert all(metric.name.endswith("_info") is (metric.type is Type.INFO) for metric in CATALOGUE)


def test_families_are_named_as_openmetrics_wants() -> None:
    families = {metric.name: metric.family for metric in CATALOGUE}
    assert families["unplugd_ioreqs_total"] == "unplugd_ioreqs"
    assert families["unplugd_build_info"] == "unplugd_build"
    assert families["unplugd_domains"] == "unplugd_domains"
    assert len(set(families.values())) == len(families)


def test_every_device_has_a_series() -> None:
    (unplugged,) = (metric for metric in CATALOGUE if metric.name == "unplugd_domain_unplugged")
    assert unplugged.values["device"] == tuple(DEVICES)


def test_the_stand_ins_are_views() -> None:
    domain: DomainView = StandInDomain()
    host: HostView = StandInHost()
    assert (domain.domid, host.version) == (7, "0.1.0")


def test_the_documentation_is_what_the_catalogue_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "metrics-docs.py", "--check"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_counting_costs_no_library() -> None:
    code = "import sys, unplugd.http.metrics; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
